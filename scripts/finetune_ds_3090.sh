#!/usr/bin/env bash
# Train decoder adapters, resampler and window adapters (lora-llm) on 8 GPUs of 24 GB with ZeRO-3.
#   MODEL=echo840/Monkey DATA=train.json OUTPUT=outputs/monkey-lora bash scripts/finetune_ds_3090.sh [flags]
# ZeRO-3, because the weights alone are 19.4 GB in bf16. GPUs, nodes and everything else from environment or flags:
# see scripts/launch.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
exec bash "$root/scripts/launch.sh" --config "$root/configs/training/lora-llm.yaml" \
  --deepspeed "$root/configs/deepspeed/zero3.json" "$@"
