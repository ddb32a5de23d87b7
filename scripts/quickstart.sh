#!/usr/bin/env bash
# The main job on the embedded default, from a fresh machine: environment, sample data, training, evaluation.
# Works from any directory; a second run reuses the environment and does the rest again.
#
#   bash scripts/quickstart.sh
#   bash scripts/quickstart.sh --pictures 400 --steps 80       # --help: every flag
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$repository/scripts/environment.sh"
PYTHONPATH="$repository" exec "$python" -m scripts.quickstart "$@"
