# shellcheck shell=bash
# What the project's scripts install, each only when it is missing. To be sourced from the project's root.

# Runs apt-get as root, once per shell with a fresh package list, and one at a time: scripts install side by side.
apt_install() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    {
        flock 9
        if [ -z "${apt_updated:-}" ]; then
            "${as_root[@]}" apt-get update -qq || return
            apt_updated=1
        fi
        # RUNLEVEL=1: a server that comes as a package is not started as a service of this machine.
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
            apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    } 9<"${BASH_SOURCE[0]}"
}

# Rust's own linker needs a C compiler, and so do SQLite, ring and librdkafka; that and the driver of CQL need OpenSSL.
install_build_tools() {
    command -v cargo >/dev/null || { echo "Rust is missing: install it with rustup (https://rustup.rs)" >&2; return 1; }
    { command -v cc && command -v make; } >/dev/null || apt_install build-essential
    command -v pkg-config >/dev/null || apt_install pkg-config
    pkg-config --exists openssl || apt_install libssl-dev
    pkg-config --exists zlib || apt_install zlib1g-dev
}

# Python, Node.js and a browser, with the packages that the tests pin. A stamp holds the checksum of what was installed.
install_test_clients() {
    command -v python3 >/dev/null || apt_install python3
    command -v node >/dev/null || apt_install nodejs
    command -v npm >/dev/null || apt_install npm
    command -v chromium >/dev/null || apt_install chromium
    python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv
    if stale .venv tests/clients/python/requirements.txt; then
        rm -rf .venv
        python3 -m venv .venv
        .venv/bin/pip install --quiet --disable-pip-version-check -r tests/clients/python/requirements.txt
        stamp .venv tests/clients/python/requirements.txt
    fi
    local folder
    for folder in tests/clients/node tests/browser; do
        if stale "$folder/node_modules" "$folder/package-lock.json"; then
            npm --prefix "$folder" ci --silent --no-audit --no-fund
            stamp "$folder/node_modules" "$folder/package-lock.json"
        fi
    done
}

# What checks the files of deploy/: nginx, Prometheus's promtool, and what `docker compose` reads its file with.
install_deploy_checkers() {
    command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || apt_install nginx-light
    command -v promtool >/dev/null || apt_install prometheus
    command -v openssl >/dev/null || apt_install openssl
    if ! docker compose version >/dev/null 2>&1 && ! [ -x "$compose_go" ]; then
        command -v go >/dev/null || { echo "neither docker compose nor Go is here to check docker-compose.yml with" >&2; return 1; }
        GOBIN=$PWD/.engines/compose-go go install github.com/compose-spec/compose-go/v2/cmd@v2.16.2
    fi
}
compose_go=.engines/compose-go/cmd

stale() { [ "$(cat "$1/.installed" 2>/dev/null)" != "$(sha256sum <"$2")" ]; }
stamp() { sha256sum <"$2" >"$1/.installed"; }
