#!/usr/bin/env bash
# Train the small model of models/small anew, in stages, from documents drawn on the spot; see train_small_model.py.
#
#   bash scripts/train_small_model.sh
#   bash scripts/train_small_model.sh --output outputs/try --pictures 1000 --base-steps 200 --monkey-steps 100
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$repository/scripts/environment.sh"
cd "$repository"
exec "$python" -m scripts.train_small_model "$@"
