#!/usr/bin/env bash
# Full-size training figures of this GPU, recipe after recipe, as JSON in outputs/full_size (or in $1).
#   bash benchmarks/training_gpu.sh [FOLDER]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
output=${1:-outputs/full_size}
python=${PYTHON:-${VENV:-$root/.venv}/bin/python}
command -v "$python" >/dev/null || python=python3
nvidia-smi -L >/dev/null 2>&1 || { echo "error: this machine shows no NVIDIA GPU, and these figures are one's" >&2; exit 2; }

run() {
  name=$1
  shift
  echo "== $name"
  "$python" -m benchmarks.full_size "$@" --output "$output/$name.json" || echo "$name failed; the lines above say why" >&2
}

run full-llm --recipe full-llm --pack-tokens 4096
run full-llm-4-questions --recipe full-llm --pack-tokens 8192 --questions 4
run full-llm-checkpointed --recipe full-llm --pack-tokens 8192 --vision-checkpointing --decoder-checkpointing
run lora-llm --recipe lora-llm --pack-tokens 4096
run lora-llm-checkpointed --recipe lora-llm --pack-tokens 2048 --vision-checkpointing --decoder-checkpointing
run adapters-only --recipe adapters-only --pack-tokens 4096
run lora-llm-896x1344 --recipe lora-llm --grid 2 3 --pack-tokens 4096 --vision-checkpointing --decoder-checkpointing
