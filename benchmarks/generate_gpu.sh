#!/usr/bin/env bash
# Full-size figures of answering on this GPU, as JSON in outputs/full_size (or in FOLDER): bf16, bf16 with the compiled
# step, 4 bits, and 4 bits compiled. Needs 24 GB of GPU memory, and 20 GB of disk in FOLDER for the weights that are packed.
#   bash benchmarks/generate_gpu.sh [FOLDER]
# A run that fails, for instance because it does not fit, is named at the end; the others are taken all the same.
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
  echo "error: torch sees no CUDA device here, and these figures are a GPU's; for a CPU: python -m benchmarks.generate" >&2
  exit 2
}
mkdir -p "$output"
failed=()

run() {
  name=$1
  shift
  echo "== $name"
  "$python" -m benchmarks.full_size_generation "$@" --output "$output/$name.json" || failed+=("$name")
}

run generation
run generation-compiled --compile --images 1
run generation-4bit --quantization 4bit --folder "$output" --images 1
run generation-4bit-compiled --quantization 4bit --folder "$output" --compile --images 1
run generation-896x1344 --grid 2 3 --images 1 4

if [ ${#failed[@]} -gt 0 ]; then
  echo "error: no figures of ${failed[*]}; the lines above say why" >&2
  exit 1
fi
