#!/usr/bin/env bash
# Set up the environment, then lint and test. Works from any directory; arguments go to pytest.
#
#   bash scripts/test.sh                    everything
#   bash scripts/test.sh -m "not slow"      the quick ones
#   bash scripts/test.sh -n 0 tests/test_model.py -k batch
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$repository/scripts/environment.sh"
cd "$repository"

# No test may touch the network.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False TOKENIZERS_PARALLELISM=false

"$python" -m ruff check .
"$python" -m ruff format --check .
# Files of tests are shared by a few processes, each with one thread to compute in. `-n 0` is one process for all.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Where Python may not keep what it compiled, every process of the tests compiles the project and the tests anew.
unset PYTHONDONTWRITEBYTECODE
# One process more than there are processors, of four at most, since many tests wait for programs that they started.
workers="$("$python" -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')"
# In the order of their names: xdist would begin with the files of most tests, and end with few long ones.
exec "$python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
