#!/usr/bin/env bash
# Everything at full size on this GPU, in order of worth, as records in outputs/gpu and a page in docs/gpu.md.
#   bash benchmarks/gpu.sh [--minutes 12] [--only STAGE…] [--dry-run]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
python=${PYTHON:-${VENV:-$root/.venv}/bin/python}
command -v "$python" >/dev/null || python=python3
exec "$python" -m benchmarks.gpu "$@"
