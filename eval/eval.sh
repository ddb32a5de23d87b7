#!/usr/bin/env bash
# Evaluate a checkpoint.
#
#   bash eval/eval.sh CKPT NAME [TASKS] [FLAG…]
#   bash eval/eval.sh CKPT NAME [TASKS] -- FLAG…
#
# CKPT   folder of a checkpoint, or its hub name
# NAME   name of the run: its files go to result/NAME in the repository
# TASKS  tasks, groups, patterns or files of your own, by commas; without it the fourteen published sets
# FLAG…  passed on to evaluate_vqa.py as they are and after ours, so they win over the defaults here
#
# The third argument is TASKS unless it begins with "-". One "--" before the flags is dropped: it may stand there to show
# where they begin and means nothing else. Flags come after ours, so they win: `… NAME -- --batch-size 16`.
#
# Works from any folder. Relative paths in CKPT, TASKS and FLAG… start where you are; the data of named tasks are looked
# for in the repository (--data-root) and results go there (--output-dir).
#
#   environment       what
#   NPROC_PER_NODE    processes on this machine, by default one a visible GPU, or one without a GPU
#   WORLD_SIZE        machines, 1 by default; NNODES means the same
#   RANK              number of this machine, from 0; NODE_RANK means the same
#   MASTER_ADDR       address of machine 0
#   MASTER_PORT       port on it, 12345 by default; one machine alone takes any that is free
#   PYTHON            interpreter; by default that of the repository's .venv where it exists, else python3
#
# Machines must share the folder of results. A process that a scheduler started by itself, with LOCAL_RANK set for it,
# joins the others of its WORLD_SIZE as it is.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

if [ "$#" -lt 2 ]; then
    echo "usage: bash eval/eval.sh CKPT NAME [TASKS] [FLAG…]   (see the top of $root/eval/eval.sh)" >&2
    exit 2
fi
checkpoint="$1"
name="$2"
shift 2

tasks=()
data_root=(--data-root "$root")
if [ "$#" -gt 0 ] && [ "${1#-}" = "$1" ]; then
    tasks=(--dataset "$1")
    # The images of a file of your own lie beside it, not in the repository.
    case "$1" in *.jsonl* | *.toml* | *.yaml* | *.yml*) data_root=() ;; esac
    shift
fi
if [ "${1:-}" = -- ]; then
    shift
fi

if [ -z "${PYTHON:-}" ]; then
    if [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; else PYTHON=python3; fi
fi

# ${array[@]+…}: an empty array counts as unset under -u in the bash of macOS.
program=("$root/evaluate_vqa.py"
    --checkpoint "$checkpoint" --save_name "$name" --batch-size 4 --num-workers 2 --output-dir "$root/result"
    ${data_root[@]+"${data_root[@]}"} ${tasks[@]+"${tasks[@]}"} "$@")

if [ -n "${LOCAL_RANK:-}" ]; then
    exec "$PYTHON" "${program[@]}"
fi

processes="${NPROC_PER_NODE:-}"
if [ -z "$processes" ]; then
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
        processes=${#visible[@]}
    elif [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        processes=1
    else
        processes=$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)
        [ "$processes" -gt 0 ] || processes=1
    fi
fi
nodes="${NNODES:-${WORLD_SIZE:-1}}"
node="${NODE_RANK:-${RANK:-0}}"
for number in "NPROC_PER_NODE=$processes" "WORLD_SIZE=$nodes"; do
    case "${number#*=}" in
        "" | *[!0-9]* | 0) echo "error: $number: give a whole number of at least 1" >&2 && exit 2 ;;
    esac
done
unset RANK WORLD_SIZE
if [ "$processes" = 1 ] && [ "$nodes" = 1 ]; then
    exec "$PYTHON" "${program[@]}"
elif [ "$nodes" = 1 ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$processes" "${program[@]}"
fi
if [ -z "${MASTER_ADDR:-}" ]; then
    echo "error: WORLD_SIZE=$nodes machines, but MASTER_ADDR is not set: give the address of machine 0" >&2
    exit 2
fi
exec "$PYTHON" -m torch.distributed.run --nnodes "$nodes" --node_rank "$node" --nproc_per_node "$processes" \
    --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-12345}" "${program[@]}"
