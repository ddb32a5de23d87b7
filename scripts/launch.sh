#!/usr/bin/env bash
# Start finetune_multitask.py on this node's GPUs; the other launchers call it with their recipe.
#
#   environment    as a flag                what
#   MODEL          --model_name_or_path     checkpoint to start from
#   DATA           --data_path              training records; several files as a flag
#   OUTPUT         --output_dir             folder for the result
#   GPUS           --nproc_per_node         processes on this node, one a GPU; by default all GPUs that are visible,
#                                           0 for one process on the CPU
#   NNODES         --nnodes                 nodes, 1 by default
#   NODE_RANK      --node_rank              this node's number, from 0
#   MASTER_ADDR    --master_addr            address of node 0
#   MASTER_PORT    --master_port            port on it, 29500 by default; one node alone takes any that is free
#   PYTHON                                  interpreter; by default that of .venv (or of VENV), else python3
#
# A flag wins over the environment. Every other flag is finetune_multitask.py's.
#
# Several nodes: the same command on each of them, NODE_RANK apart. Under Slurm: scripts/slurm/finetune.sbatch.
# A scheduler that starts one process a GPU, and sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for it,
# can run this script in each: torchrun is left out then.
#
# A scheduler's SIGTERM or SIGUSR1 ends the run after the step with a checkpoint; start again with
# --resume_from_checkpoint True. torchrun kills what is left 30 seconds after SIGTERM, so SIGUSR1 is the one for long steps.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac

fail() {
  echo "error: $*" >&2
  exit 2
}

# Flags of the start itself, taken out of the words; the rest is the program's.
words=()
while [ $# -gt 0 ]; do
  word=$1
  shift
  case $word in
    --nproc_per_node | --nnodes | --node_rank | --master_addr | --master_port)
      [ $# -gt 0 ] || fail "$word has no value"
      word=$word=$1
      shift
      ;;
  esac
  case $word in
    --nproc_per_node=*) GPUS=${word#*=} ;;
    --nnodes=*) NNODES=${word#*=} ;;
    --node_rank=*) NODE_RANK=${word#*=} ;;
    --master_addr=*) MASTER_ADDR=${word#*=} ;;
    --master_port=*) MASTER_PORT=${word#*=} ;;
    *) words+=("$word") ;;
  esac
done

# Whether the words, or a --config file among them, set the flag $1.
given() {
  local word before=""
  for word in ${words[@]+"${words[@]}"}; do
    case $word in "--$1" | "--$1="*) return 0 ;; esac
    case $word in --config=*) before=--config word=${word#*=} ;; esac
    if [ "$before" = --config ] && [ -f "$word" ]; then
      while IFS= read -r line || [ -n "$line" ]; do
        case $line in "$1:"*) return 0 ;; esac
      done <"$word"
    fi
    before=$word
  done
  return 1
}

flags=()
need() { # flag, what it is, the variable's name
  local value=${!3:-}
  if [ -n "$value" ]; then
    flags+=("--$1" "$value")
  elif ! given "$1"; then
    fail "$2 is missing: set $3, or give --$1"
  fi
}
need model_name_or_path "the checkpoint to start from" MODEL
need data_path "the file of training records" DATA
need output_dir "the folder for the result" OUTPUT

whole_number() { # name, value, least
  case $2 in "" | *[!0-9]*) fail "$1=$2 is not a whole number" ;; esac
  [ "$2" -ge "$3" ] || fail "$1=$2 does not work: give $3 or more"
}

if [ -n "${PYTHON:-}" ]; then
  python=$PYTHON
  command -v "$python" >/dev/null || fail "PYTHON=$python is no program: name an interpreter"
else
  python=${VENV:-$root/.venv}/bin/python
  command -v "$python" >/dev/null || python=python3
  command -v "$python" >/dev/null || fail "there is no python3 on PATH: set PYTHON, or make .venv with scripts/test.sh"
fi

# MiB of the smallest card that is visible; nothing where nvidia-smi does not say.
smallest_card() {
  local least="" size
  while read -r size; do
    case $size in "" | *[!0-9]*) return ;; esac
    [ -n "$least" ] && [ "$least" -le "$size" ] || least=$size
  done < <(nvidia-smi ${CUDA_VISIBLE_DEVICES:+"--id=$CUDA_VISIBLE_DEVICES"} --query-gpu=memory.total \
    --format=csv,noheader,nounits 2>/dev/null || true)
  echo "$least"
}

# For finetune_ds.sh: the recipe that the cards of this node hold, by the plan of scripts/plan_memory.py.
choose_recipe() { # processes on all nodes
  local recipe=full-llm sharding=zero2 more=() least="" gib
  if [ "$1" -gt 0 ] && ! given recipe && ! given config && ! given deepspeed; then least=$(smallest_card); fi
  if [ -n "$least" ]; then
    gib=$((least / 1024)).$((least % 1024 * 10 / 1024))
    fits() { # flags; the plan is of the very command that would start. Where there can be none, the run itself says why
      local status=0
      "$python" "$root/scripts/plan_memory.py" --gpus "$processes" --gpu-memory "$gib" --quiet -- \
        --config "$root/configs/training/full-llm.yaml" --deepspeed "$root/configs/deepspeed/zero2.json" "$@" \
        ${flags[@]+"${flags[@]}"} ${words[@]+"${words[@]}"} >/dev/null 2>&1 || status=$?
      [ "$status" -ne 1 ]
    }
    local processes=$1 otherwise="; choose otherwise with --recipe or --deepspeed (scripts/plan_memory.py shows the plan)"
    if fits; then
      :
    elif fits --vision_checkpointing True; then
      more=(--vision_checkpointing True)
      echo "full-llm on cards of $gib GiB takes --vision_checkpointing True$otherwise" >&2
    else
      recipe=lora-llm sharding=zero3
      echo "full-llm does not fit cards of $gib GiB, so this trains lora-llm with ZeRO-3$otherwise" >&2
    fi
  fi
  words=(--config "$root/configs/training/$recipe.yaml" --deepspeed "$root/configs/deepspeed/$sharding.json"
    ${more[@]+"${more[@]}"} ${words[@]+"${words[@]}"})
}

if [ -n "${RANK:-}" ] && [ -n "${LOCAL_RANK:-}" ] && [ -n "${WORLD_SIZE:-}" ]; then
  [ -n "${MASTER_ADDR:-}" ] && [ -n "${MASTER_PORT:-}" ] ||
    fail "RANK, LOCAL_RANK and WORLD_SIZE are set, so a scheduler started this process, but not MASTER_ADDR and MASTER_PORT: set them, or unset the three for torchrun to start the processes"
  export MASTER_ADDR MASTER_PORT
  [ -z "${BY_MEMORY:-}" ] || choose_recipe "$WORLD_SIZE"
  exec "$python" "$root/finetune_multitask.py" ${flags[@]+"${flags[@]}"} ${words[@]+"${words[@]}"}
fi

if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
  visible_gpus=${#visible[@]}
else
  visible_gpus=$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)
fi
if [ -z "${GPUS:-}" ]; then
  GPUS=$visible_gpus
  [ "$GPUS" -gt 0 ] || fail "this node shows no GPU; set GPUS, or train the small model with scripts/finetune_cpu.sh"
fi
whole_number GPUS "$GPUS" 0
[ "$visible_gpus" -eq 0 ] || [ "$GPUS" -le "$visible_gpus" ] ||
  fail "GPUS=$GPUS, but $visible_gpus are visible on this node: lower it, or see CUDA_VISIBLE_DEVICES"
nodes=${NNODES:-1}
whole_number NNODES "$nodes" 1

start=()
if [ "$GPUS" -gt 0 ]; then
  start=("$root/scripts/start_processes.py" --nproc_per_node "$GPUS" --nnodes "$nodes")
  if [ "$nodes" -gt 1 ]; then
    [ -n "${MASTER_ADDR:-}" ] || fail "NNODES=$nodes needs the address of node 0: set MASTER_ADDR, or give --master_addr"
    [ -n "${NODE_RANK:-}" ] || fail "NNODES=$nodes needs this node's number: set NODE_RANK from 0 to $((nodes - 1))"
    whole_number NODE_RANK "$NODE_RANK" 0
    [ "$NODE_RANK" -lt "$nodes" ] || fail "NODE_RANK=$NODE_RANK does not work with NNODES=$nodes: give 0 to $((nodes - 1))"
    start+=(--node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
  elif [ -n "${MASTER_PORT:-}" ]; then
    start+=(--node_rank 0 --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "$MASTER_PORT")
  else
    # Any free port, so that two runs can share a node.
    start+=(--standalone)
  fi
  # torchrun would set 1, too few for an optimiser on the CPU.
  cores=$(nproc 2>/dev/null || echo 1)
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > GPUS ? cores / GPUS : 1))}
fi
[ -z "${BY_MEMORY:-}" ] || choose_recipe $((GPUS * nodes))
exec "$python" ${start[@]+"${start[@]}"} "$root/finetune_multitask.py" ${flags[@]+"${flags[@]}"} ${words[@]+"${words[@]}"}
