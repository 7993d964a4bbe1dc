#!/usr/bin/env bash
# Training on several GPUs (or, without any, on that many CPU processes); for several machines see tools/launch.sh.
set -euo pipefail
USAGE="tools/dist_train.sh CONFIG GPUS [args to tools/train.py]"
# shellcheck source=tools/launch.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

[ $# -ge 2 ] || die_with_usage
config=$1 gpus=$2
shift 2
require_positive_integer GPUS "$gpus"
launch train.py "$gpus" "$config" --launcher pytorch "$@"
