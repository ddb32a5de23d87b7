#!/usr/bin/env bash
# Start finetune_multitask.py on this node's GPUs; the other launchers call it with their recipe.
#
#   MODEL, DATA, OUTPUT    checkpoint to start from, training records, folder for the result
#                          (or --model_name_or_path, --data_path, --output_dir)
#   GPUS                   processes on this node; by default the GPUs it has, 0 for one process without torchrun
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT    as torchrun's, by default one node
#   PYTHON                 interpreter; by default that of .venv (or of VENV), else python3
#
# Every other flag of finetune_multitask.py can follow.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

python=${PYTHON:-${VENV:-$root/.venv}/bin/python}
command -v "$python" >/dev/null || python=python3
if [ -z "${GPUS:-}" ]; then
  GPUS=$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)
  if [ "$GPUS" -eq 0 ]; then
    echo "error: this node shows no GPU; set GPUS, or train the small model with scripts/finetune_cpu.sh" >&2
    exit 2
  fi
fi

flags=()
[ -z "${MODEL:-}" ] || flags+=(--model_name_or_path "$MODEL")
[ -z "${DATA:-}" ] || flags+=(--data_path "$DATA")
[ -z "${OUTPUT:-}" ] || flags+=(--output_dir "$OUTPUT")

start=()
if [ "$GPUS" -gt 0 ]; then
  start=(-m torch.distributed.run --nproc_per_node "$GPUS" --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}")
fi
exec "$python" ${start[@]+"${start[@]}"} "$root/finetune_multitask.py" ${flags[@]+"${flags[@]}"} "$@"
