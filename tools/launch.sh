# shellcheck shell=bash
# Sourced by the dist_*.sh launchers.
#
#   launch PROGRAM PROCESSES [args]     torchrun, PROCESSES of them on this machine
#
# One machine: torchrun finds a free port. Several: start the same line on each with NNODES, NODE_RANK, MASTER_ADDR
# and, if 29500 is taken, MASTER_PORT. A Python environment that is active is used, else .venv.

die_with_usage() {
    [ $# -eq 0 ] || printf 'error: %s\n' "$*" >&2
    printf 'usage: %s\n' "$USAGE" >&2
    exit 2
}

require_positive_integer() { # NAME VALUE
    [[ $2 =~ ^[1-9][0-9]*$ ]] || die_with_usage "$1 must be a positive integer, not '$2'"
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
    local rendezvous=(--standalone --local-addr 127.0.0.1)
    if [ "$nodes" -gt 1 ]; then
        [ -n "${NODE_RANK:-}" ] && [ -n "${MASTER_ADDR:-}" ] ||
            die_with_usage "NNODES=$nodes also needs NODE_RANK (0 to $((nodes - 1))) and MASTER_ADDR"
        rendezvous=(--nnodes "$nodes" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"
            --master-port "${MASTER_PORT:-29500}")
    fi
    if [ -z "${OMP_NUM_THREADS:-}" ]; then
        cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
        export OMP_NUM_THREADS=$((cores > processes ? cores / processes : 1))
    fi
    exec "$python" "$tools/launch.py" "${rendezvous[@]}" --nproc-per-node "$processes" "$tools/$program" "$@"
}
