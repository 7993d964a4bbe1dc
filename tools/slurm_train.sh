#!/usr/bin/env bash
# Training on a SLURM cluster: one task per machine, each runs tools/dist_train.sh for its GPUs.
# GPUS_PER_NODE (default: 8, or GPUS if fewer), CPUS_PER_TASK (of a whole machine's task; default: 8 per GPU) and
# SRUN_ARGS (more options for srun, e.g. "--time=24:00:00 --signal=TERM@120") come from the environment. Inside of an
# sbatch job, a training that was told to stop and has saved is queued again and goes on by itself: docs/launching.md.
set -euo pipefail
USAGE="tools/slurm_train.sh PARTITION JOB_NAME CONFIG GPUS [args to tools/train.py]"
tools=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=tools/launch.sh
. "$tools/launch.sh"

[ $# -ge 4 ] || die_with_usage
partition=$1 job_name=$2 config=$3 gpus=$4
shift 4
require_positive_integer GPUS "$gpus"
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
require_positive_integer GPUS_PER_NODE "$per_node"
[ $((gpus % per_node)) -eq 0 ] || die_with_usage "GPUS ($gpus) is not a multiple of GPUS_PER_NODE ($per_node)"
nodes=$((gpus / per_node))
read -r -a more <<<"${SRUN_ARGS:-}"

# Runs on every machine, where exec lets the signals of SLURM reach the launcher. The port follows from the job, below
# the range that systems hand out to connections.
# shellcheck disable=SC2016
on_each_node='
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || exit
export NNODES=$SLURM_NNODES NODE_RANK=$SLURM_NODEID MASTER_ADDR=${hosts%%$'"'\\n'"'*}
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
exec bash "$@"'
# The first start passes what it was given, one after a requeue goes on.
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || set -- "$@" --resume
code=0
srun --partition="$partition" --job-name="$job_name" --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 \
    --gres="gpu:$per_node" --cpus-per-task="${CPUS_PER_TASK:-$((8 * per_node))}" --kill-on-bad-exit=1 \
    ${more[@]+"${more[@]}"} bash -c "$on_each_node" slurm_train "$tools/dist_train.sh" "$config" "$per_node" "$@" ||
    code=$?
if [ "$code" -eq 75 ]; then
    if [ -z "${SLURM_JOB_ID:-}" ]; then
        echo "saved and left; only an sbatch job is queued again by itself: go on with the same line and --resume" >&2
    elif said=$(scontrol requeue "$SLURM_JOB_ID" 2>&1); then
        echo "saved and left: job $SLURM_JOB_ID is queued again and will go on from there" >&2
    else
        echo "saved and left, but not queued again (${said:-scontrol failed}): go on with the same line and --resume" >&2
    fi
fi
exit "$code"
