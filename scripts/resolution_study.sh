#!/usr/bin/env bash
# One view, a larger window, 2×2 windows with and without adapters and global view, 2×3, stretched and padded, and pages on
# grids of their own: see resolution_study.py.
#
#   bash scripts/resolution_study.sh                            # from models/small-base
#   bash scripts/resolution_study.sh outputs/small/base --quick
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$repository/scripts/environment.sh"
cd "$repository"
exec "$python" -m scripts.resolution_study "$@"
