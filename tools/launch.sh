# shellcheck shell=bash
# Sourced by the dist_*.sh launchers.
#
#   launch PROGRAM PROCESSES [args]     PROCESSES of it on this machine, see docs/launching.md
#
# Several machines: start the same line on each with NNODES, NODE_RANK, MASTER_ADDR; they meet on the first free one of
# 16 ports from MASTER_PORT (29500). MAX_RESTARTS (0): how often to start again after a failure. STOP_GRACE (120): seconds
# to save after SIGTERM or Ctrl-C. A Python environment that is active is used, else .venv.

die_with_usage() {
    [ $# -eq 0 ] || printf 'error: %s\n' "$*" >&2
    printf 'usage: %s\n' "$USAGE" >&2
    exit 2
}

require_positive_integer() { # NAME VALUE
    [[ $2 =~ ^[1-9][0-9]*$ ]] || die_with_usage "$1 must be a positive integer, not '$2'"
}

require_number() { # NAME VALUE
    [[ $2 =~ ^(0|[1-9][0-9]*)$ ]] || die_with_usage "$1 must be a number from 0, not '$2'"
}

launch() {
    local program=$1 processes=$2 tools python cores nodes=${NNODES:-1}
    shift 2
    tools=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
    python=$(command -v python || command -v python3 || true)
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
        python=$tools/../.venv/bin/python
    fi
    [ -n "$python" ] || die_with_usage "no python found: activate an environment, or make one with '. tools/env.sh'"

    require_positive_integer NNODES "$nodes"
    # 127.0.0.1 by number: the machine's own name need not resolve.
    local where=(--address 127.0.0.1)
    if [ "$nodes" -gt 1 ]; then
        [ -n "${NODE_RANK:-}" ] && [ -n "${MASTER_ADDR:-}" ] ||
            die_with_usage "NNODES=$nodes also needs NODE_RANK (0 to $((nodes - 1))) and MASTER_ADDR"
        require_number NODE_RANK "$NODE_RANK"
        [ "$NODE_RANK" -lt "$nodes" ] || die_with_usage "NODE_RANK=$NODE_RANK: it counts from 0 to $((nodes - 1))"
        require_positive_integer MASTER_PORT "${MASTER_PORT:-29500}"
        where=(--nodes "$nodes" --node-rank "$NODE_RANK" --address "$MASTER_ADDR" --port "${MASTER_PORT:-29500}")
    fi
    require_number MAX_RESTARTS "${MAX_RESTARTS:-0}"
    require_number STOP_GRACE "${STOP_GRACE:-120}"
    if [ -z "${OMP_NUM_THREADS:-}" ]; then
        cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
        export OMP_NUM_THREADS=$((cores > processes ? cores / processes : 1))
    fi
    exec "$python" "$tools/launch.py" "${where[@]}" --processes "$processes" --max-restarts "${MAX_RESTARTS:-0}" \
        --grace "${STOP_GRACE:-120}" "$tools/$program" "$@"
}
