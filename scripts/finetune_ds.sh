#!/usr/bin/env bash
# Train decoder, resampler and window adapters (full-llm) on 8 GPUs of 80 GB with ZeRO-2.
#   MODEL=echo840/Monkey DATA=train.json OUTPUT=outputs/monkey bash scripts/finetune_ds.sh [flags]
# On cards that cannot hold that by the memory plan (scripts/plan_memory.py), with the vision side's activations computed
# twice where this is enough, else decoder adapters in place of the decoder (lora-llm) with ZeRO-3, as on 8 GPUs of
# 24 GB; a line says so. The smallest card of this node counts: where nodes differ, name the recipe. --recipe, --config
# or --deepspeed choose otherwise.
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
export BY_MEMORY=1
exec bash "$root/scripts/launch.sh" "$@"
