#!/usr/bin/env bash
# Lint, format, types, then the tests. Arguments go to pytest in place of `-n 2`.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/env.sh
. tools/env.sh
# One thread per process: the test processes would fight over the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python -m ruff check
python -m ruff format --check
python -m mypy
[ $# -gt 0 ] || set -- -n 2
exec python -m pytest "$@"
