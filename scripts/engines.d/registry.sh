# shellcheck shell=bash
# Apicurio as a schema registry with Confluent's API, in memory. To be sourced by scripts/engines.

registry_configure() {
    local dir=$1 java
    java=$(find_java)
    free_port >"$dir/port"
    cat >"$dir/run" <<EOF
#!/bin/sh
cd "$dir"
exec $java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \\
    -Dquarkus.http.host=127.0.0.1 -Dquarkus.http.port=$(cat "$dir/port") \\
    -jar "${engines_home:?}/registry/app/apicurio-registry-app-2.6.13.Final-runner.jar"
EOF
}

registry_ready() {
    local get='GET /apis/ccompat/v7/subjects HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' ok='HTTP/1.1 200'
    [ "$(answer "$(cat "$1/port")" "$get" ${#ok})" = "$(printf '%s' "$ok" | od -An -v -tx1 | tr -d ' \n')" ]
}

registry_env() {
    echo "ENGINE_REGISTRY=http://127.0.0.1:$(cat "$1/port")/apis/ccompat/v7"
}
