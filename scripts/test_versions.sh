#!/usr/bin/env bash
# Test the lowest, or the newest, versions that pyproject.toml allows, in an environment of their own.
#
#   bash scripts/test_versions.sh lowest
#   bash scripts/test_versions.sh newest tests/test_parity.py     # these tests alone
#
# The environment is made anew beside .venv. scripts/test.sh has the pinned versions between the two.
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$repository"
case "${1:-}" in
  lowest) resolution=lowest-direct ;;
  newest) resolution=highest ;;
  *) echo "usage: bash scripts/test_versions.sh lowest|newest [TEST…]" >&2; exit 2 ;;
esac
venv=".venv-$1"
shift
# What meets the libraries: opening weights, training, PEFT, DeepSpeed, generating, quantising, the demo, the server.
[ $# -gt 0 ] || set -- tests/test_parity.py tests/test_startup.py tests/test_attention.py tests/test_training_runs.py \
  tests/test_distributed.py tests/test_lora.py tests/test_merging.py tests/test_decoders.py tests/test_timm_encoders.py \
  tests/test_checkpoint.py tests/test_engine.py tests/test_demo.py tests/test_serve.py

"${PYTHON:-python3}" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --resolution "$resolution" \
  -e '.[all,development]'
"$venv/bin/uv" pip list --python "$venv/bin/python" 2>/dev/null |
  grep -iE '^(torch|torchvision|transformers|peft|accelerate|deepspeed|bitsandbytes|timm|datasets|gradio|fastapi|pydantic|pillow|numpy) '
exec "$venv/bin/python" -m pytest -q -n auto --dist loadfile "$@"
