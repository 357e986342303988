# shellcheck shell=bash
# Starts, signals and ends engines as processes. To be sourced by scripts/engines.
#
# An engine's folder holds all that is its own: `run` (the command that starts it, written by its <engine>_configure), `port`,
# `pid`, `log`, its configuration and its data. So whoever has the folder can stop it and start it again.

# Seconds that an engine may take to be ready. On a busy machine Cassandra alone takes half a minute.
ready_within=${ENGINES_READY_WITHIN:-180}
# Seconds that an engine may take to end after TERM.
end_within=20

# Starts an engine that is configured and does not run. `setsid`: what ends the caller's terminal must not end the engine
# before the caller has stopped it in order.
launch() {
    local dir=$1/$2
    setsid "$dir/run" </dev/null >>"$dir/log" 2>&1 &
    echo "$! $(started_at $!)" >"$dir/pid"
}

# The kernel's start time of a process: with it a process id names one process for good.
started_at() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return
    # The second field, the command's name, may hold spaces.
    read -r -a stat <<<"${stat##*) }"
    # A zombie has ended; only its parent has not asked yet.
    [ "${stat[0]}" != Z ] && echo "${stat[19]}"
}

# Prints the id of an engine's process if it runs.
running() {
    local pid started
    read -r pid started 2>/dev/null <"$1/$2/pid" || return 1
    [ -n "$started" ] && [ "$(started_at "$pid")" = "$started" ] && echo "$pid"
}

wait_ready() {
    local dir=$1 engine=$2 deadline=$((SECONDS + ready_within))
    until "${engine}_ready" "$dir/$engine" 2>/dev/null; do
        if ! running "$dir" "$engine" >/dev/null; then
            fail_with_log "$dir" "$engine" "ended before it was ready"
            return 1
        fi
        if [ $SECONDS -ge $deadline ]; then
            fail_with_log "$dir" "$engine" "is not ready after $ready_within s"
            return 1
        fi
        sleep 0.2
    done
}

fail_with_log() {
    echo "engines: $2 $3; the end of $1/$2/log:" >&2
    tail -n 40 "$1/$2/log" | sed 's/^/  | /' >&2
}

# Ends engines side by side: TERM, then KILL for those that take too long. One that is paused must be woken to hear it.
end() {
    local dir=$1 engine pid deadline
    shift
    for engine in "$@"; do
        signal_if_running "$dir" "$engine" TERM
        signal_if_running "$dir" "$engine" CONT
    done
    deadline=$((SECONDS + end_within))
    for engine in "$@"; do
        while pid=$(running "$dir" "$engine"); do
            if [ $SECONDS -ge $deadline ]; then
                echo "engines: $engine does not end; killing it" >&2
                kill -KILL "$pid" 2>/dev/null || true
            fi
            sleep 0.1
        done
        rm -f "$dir/$engine/pid"
    done
}

signal_if_running() {
    local pid
    if pid=$(running "$1" "$2"); then
        kill "-$3" "$pid" 2>/dev/null || true
    fi
}

# Sends a signal to an engine that must run.
signal() {
    local pid
    pid=$(running "$1" "$2") || { echo "engines: $2 does not run in $1" >&2; return 1; }
    kill "-$3" "$pid"
}

# Prints a port of the loopback interface that nothing listens at. They are taken from below the range from which the kernel
# takes the ports of outgoing connections (32768 and up), where one could be gone before the engine listens.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
}

# Talks to PORT in turns: `answer PORT REQUEST COUNT [REQUEST COUNT…]` sends the bytes of a request (printf's escapes) and
# prints in hexadecimal the first COUNT bytes of what comes back.
answer() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit
        shift
        while [ $# -ge 2 ]; do
            # shellcheck disable=SC2059 # the bytes are escapes for printf
            printf "$1" >&3
            timeout 5 dd bs=1 count="$2" <&3 | od -An -v -tx1 | tr -d ' \n'
            shift 2
        done
    )
}
