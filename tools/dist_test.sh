#!/usr/bin/env bash
# Evaluation on several GPUs (or, without any, on that many CPU processes); for several machines see tools/launch.sh.
set -euo pipefail
USAGE="tools/dist_test.sh CONFIG CHECKPOINT GPUS [args to tools/test.py]"
# shellcheck source=tools/launch.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

[ $# -ge 3 ] || die_with_usage
config=$1 checkpoint=$2 gpus=$3
shift 3
require_positive_integer GPUS "$gpus"
launch test.py "$gpus" "$config" "$checkpoint" --launcher pytorch "$@"
