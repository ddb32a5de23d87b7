#!/usr/bin/env bash
# Train the small model of models/small anew, in stages, from pages drawn on the spot; see train_small_model.py.
#
#   bash scripts/train_small_model.sh                                # from nothing, on a GPU where there is one
#   bash scripts/train_small_model.sh --start models/small-base      # from a checkpoint that reads, on two cores
#   bash scripts/train_small_model.sh --output outputs/try --pictures 1000 --base-steps 200 --monkey-steps 100
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$repository/scripts/environment.sh"
cd "$repository"
exec "$python" -m scripts.train_small_model "$@"
