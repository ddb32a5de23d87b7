#!/usr/bin/env bash
# A Monkey of a decoder that others published and the encoder that ships: built, trained, asked. Works from any
# directory; a second run takes up what an earlier one left.
#
#   bash scripts/train_from_parts.sh
#   bash scripts/train_from_parts.sh --language Qwen/Qwen3-0.6B --output outputs/qwen3
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$repository/scripts/environment.sh"
cd "$repository"
exec "$python" -m scripts.train_from_parts "$@"
