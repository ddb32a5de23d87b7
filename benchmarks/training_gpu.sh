#!/usr/bin/env bash
# Full-size training figures of this GPU, recipe after recipe, as JSON in outputs/full_size (or in FOLDER).
#   bash benchmarks/training_gpu.sh [FOLDER]
# A recipe that fails, for instance because it does not fit, is named at the end; the others are taken all the same.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  -*)
    echo "error: $1 is no folder for the figures; see --help" >&2
    exit 2
    ;;
esac
cd "$root"
output=${1:-outputs/full_size}
python=${PYTHON:-${VENV:-$root/.venv}/bin/python}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "error: torch sees no CUDA device here, and these figures are a GPU's; for a CPU: python -m benchmarks.training" >&2
  exit 2
}
# Rows differ in length, and so do the blocks of memory they need.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
mkdir -p "$output"
failed=()

run() {
  name=$1
  shift
  echo "== $name"
  "$python" -m benchmarks.full_size "$@" --output "$output/$name.json" || failed+=("$name")
}

run full-llm --recipe full-llm --pack-tokens 4096
run full-llm-4-questions --recipe full-llm --pack-tokens 8192 --questions 4
run full-llm-checkpointed --recipe full-llm --pack-tokens 8192 --vision-checkpointing --decoder-checkpointing
run lora-llm --recipe lora-llm --pack-tokens 4096
run lora-llm-checkpointed --recipe lora-llm --pack-tokens 2048 --vision-checkpointing --decoder-checkpointing
run qlora-llm-checkpointed --recipe qlora-llm --pack-tokens 2048 --vision-checkpointing --decoder-checkpointing --folder "$output"
run adapters-only --recipe adapters-only --pack-tokens 4096
run lora-llm-896x1344 --recipe lora-llm --grid 2 3 --pack-tokens 4096 --vision-checkpointing --decoder-checkpointing

if [ ${#failed[@]} -gt 0 ]; then
  echo "error: no figures of ${failed[*]}; the lines above say why" >&2
  exit 1
fi
