#!/usr/bin/env bash
# The demo on real images, from nothing but Python: see tools/demo.py --help for the arguments.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/env.sh
ENV_FOR=demo . tools/env.sh
exec python tools/demo.py "$@"
