#!/usr/bin/env bash
# Train the small model that ships on a CPU, by default on what scripts/quickstart.sh drew.
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
export MODEL=${MODEL:-$root/models/small}
export DATA=${DATA:-$root/outputs/quickstart/data/train.json}
export OUTPUT=${OUTPUT:-$root/outputs/finetuned}
case $DATA in
  "$root/outputs/quickstart/data/train.json")
    if [ ! -f "$DATA" ] && [[ " $* " != *" --data_path"[=\ ]* ]]; then
      echo "error: $DATA is not there: make it with scripts/quickstart.sh, or set MODEL and DATA" >&2
      exit 2
    fi
    ;;
esac
exec bash "$root/scripts/launch.sh" --config "$root/configs/training/tickets.yaml" "$@"
