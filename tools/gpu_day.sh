#!/usr/bin/env bash
# tools/gpu_day.sh OUT [PART ...] [--seconds N]: tools/gpu_day.py on a machine with a GPU and no network.
# PYTHON names an interpreter that has torch and Triton (default: python3); its other packages may lie as wheels in the
# folder WHEELS (default: wheels, where there is one).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || { echo "error: $python has no torch: name another with PYTHON=..." >&2; exit 2; }
wheels=${WHEELS:-wheels}
if [ -d "$wheels" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
"$python" tools/gpu_day.py "$@"
