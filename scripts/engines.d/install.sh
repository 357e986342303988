# shellcheck shell=bash
# Downloads the engines, each only when it is missing. To be sourced by scripts/engines.

# Where the engines are kept: in the project, or where several checkouts share them.
engines_home=${ESHAAR_ENGINES_CACHE:-${project:?}/.engines}

# Installs all that is missing. A second call finds every stamp in place and does nothing, so that a cache may be read-only.
install_engines() {
    if [ -z "$(missing)" ]; then
        return
    fi
    mkdir -p "$engines_home"
    # One at a time: ./test installs in the background while a person may do the same.
    exec {install_lock}>"$engines_home/.lock"
    flock "$install_lock"
    local part
    for part in $(missing); do
        case "$part" in
            redis-server | redis-tools | openjdk-17-jre-headless) again apt_install "$part" ;;
            *) install_by_maven "$part" ;;
        esac
    done
    exec {install_lock}>&-
}

# Prints what is not installed: Debian packages, and engines by their names.
missing() {
    command -v redis-server >/dev/null || echo redis-server
    command -v redis-cli >/dev/null || echo redis-tools
    find_java >/dev/null || echo openjdk-17-jre-headless
    local engine
    for engine in kafka cassandra registry; do
        if stale "$engines_home/$engine" "${parts:?}/$engine.pom.xml"; then
            echo "$engine"
        fi
    done
}

# Gathers what an engine's pom names into a folder that is moved into place only when it is whole.
install_by_maven() {
    local engine=$1 whole
    command -v mvn >/dev/null || again apt_install maven
    echo "engines: downloading $engine" >&2
    whole=$(mktemp -d "$engines_home/.$engine.XXXXXX")
    # Maven keeps what it has downloaded, so that a try goes on where the one before it was cut off.
    if again mvn --quiet --batch-mode -Dstyle.color=never --file "$parts/$engine.pom.xml" -DincludeScope=runtime \
        "-DoutputDirectory=$whole/lib" "-DbuildDirectory=$whole" dependency:copy-dependencies >&2 &&
        { [ "$engine" != registry ] || unpack_registry "$whole"; }
    then
        stamp "$whole" "$parts/$engine.pom.xml"
        chmod 755 "$whole"
        rm -rf "${engines_home:?}/$engine"
        mv "$whole" "$engines_home/$engine"
    else
        rm -rf "$whole"
        echo "engines: cannot download $engine" >&2
        return 1
    fi
}

unpack_registry() {
    mkdir "$1/app" && tar -xzf "$1"/lib/*.tar.gz -C "$1/app" && rm -r "${1:?}/lib"
}

# Runs a command up to three times: registries fail now and then.
again() {
    local pause
    for pause in 2 5; do
        "$@" && return
        echo "engines: once more in $pause s: $1" >&2
        sleep "$pause"
    done
    "$@"
}

# Prints the java that runs the engines. Cassandra 5 runs on Java 11 and 17 only, so a newer default does not do.
find_java() {
    local java
    for java in "${JAVA_HOME:-/nowhere}/bin/java" "$(command -v java)" /usr/lib/jvm/*17*/bin/java; do
        if [ -x "$java" ] && [[ $("$java" -version 2>&1) == *'version "17.'* ]]; then
            echo "$java"
            return
        fi
    done
    return 1
}
