#!/usr/bin/env bash
# Train decoder adapters on a decoder in 4 bits, resampler and window adapters (qlora-llm) on one GPU of 24 GB: one
# process, neither torchrun nor DeepSpeed. Needs bitsandbytes.
#   MODEL=echo840/Monkey DATA=train.json OUTPUT=outputs/monkey-qlora bash scripts/finetune_qlora_24gb.sh [flags]
# CUDA_VISIBLE_DEVICES says which GPU, 0 by default. See scripts/launch.sh for the rest.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
if [ -z "${CUDA_VISIBLE_DEVICES:-}" ] && [ "$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)" -eq 0 ]; then
  echo "error: this node shows no GPU; set CUDA_VISIBLE_DEVICES if there is one, or see scripts/finetune_cpu.sh" >&2
  exit 2
fi
case ${CUDA_VISIBLE_DEVICES:=0} in
  *,*)
    echo "error: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names several GPUs, and this run takes one: name one" >&2
    exit 2
    ;;
esac
export CUDA_VISIBLE_DEVICES
# No torchrun: a single process takes the one GPU that it sees.
export GPUS=0
exec bash "$root/scripts/launch.sh" --config "$root/configs/training/qlora-llm.yaml" "$@"
