#!/usr/bin/env bash
# Train the small model on a CPU, by default on what scripts/quickstart.sh made.
#   bash scripts/finetune_cpu.sh [flags]
# MODEL, DATA and OUTPUT say otherwise: see scripts/launch.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
export GPUS=0
export MODEL=${MODEL:-$root/outputs/quickstart/base}
export DATA=${DATA:-$root/outputs/quickstart/data/train.json}
export OUTPUT=${OUTPUT:-$root/outputs/finetuned}
case $MODEL in
  "$root/outputs/quickstart/base")
    if [ ! -d "$MODEL" ] && [[ " $* " != *" --model_name_or_path"[=\ ]* ]]; then
      echo "error: $MODEL is not there: make it with scripts/quickstart.sh, or set MODEL and DATA" >&2
      exit 2
    fi
    ;;
esac
exec bash "$root/scripts/launch.sh" --config "$root/configs/training/small.yaml" "$@"
