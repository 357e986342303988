# shellcheck shell=bash
# Redis. To be sourced by scripts/engines.

redis_configure() {
    local dir=$1
    free_port >"$dir/port"
    (umask 077 && head -c 16 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$dir/password")
    mkdir -p "$dir/data"
    # Nothing is kept on disk: what Redis holds for eshaar can be lost, and a test that kills it must see it lost.
    (umask 077 && cat >"$dir/redis.conf") <<EOF
bind 127.0.0.1
port $(cat "$dir/port")
requirepass $(cat "$dir/password")
dir $dir/data
appendonly no
save ""
daemonize no
EOF
    cat >"$dir/run" <<EOF
#!/bin/sh
exec redis-server "$dir/redis.conf"
EOF
}

redis_ready() {
    [ "$(REDISCLI_AUTH=$(cat "$1/password") timeout 5 redis-cli -p "$(cat "$1/port")" PING)" = PONG ]
}

redis_env() {
    echo "ENGINE_REDIS=127.0.0.1:$(cat "$1/port")"
    echo "ENGINE_REDIS_PASSWORD=$(cat "$1/password")"
}
