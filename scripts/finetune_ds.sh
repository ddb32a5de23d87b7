#!/usr/bin/env bash
# Train decoder, resampler and window adapters (full-llm) on 8 GPUs of 80 GB with ZeRO-2.
#   MODEL=echo840/Monkey DATA=train.json OUTPUT=outputs/monkey bash scripts/finetune_ds.sh [flags]
# Another sharding: --deepspeed configs/deepspeed/zero3.json, or zero3_offload.json, which holds weights and optimiser
# in the host's memory. GPUs, nodes and everything else from environment or flags: see scripts/launch.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
exec bash "$root/scripts/launch.sh" --config "$root/configs/training/full-llm.yaml" \
  --deepspeed "$root/configs/deepspeed/zero2.json" "$@"
