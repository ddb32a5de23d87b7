#!/usr/bin/env bash
# Evaluate a checkpoint.
#
#   bash eval/eval.sh CKPT NAME [TASKS] [FLAG…]
#   bash eval/eval.sh CKPT NAME [TASKS] -- FLAG…
#
# CKPT   folder of a checkpoint, or its hub name
# NAME   name of the run: its files go to result/NAME in the repository
# TASKS  tasks, groups, patterns or .jsonl files, by commas; without it the fourteen published sets
# FLAG…  passed on to evaluate_vqa.py as they are and after ours, so they win over the defaults here
#
# The third argument is TASKS unless it begins with "-". One "--" before the flags is dropped: it may stand there to show
# where they begin and means nothing else. Flags come after ours, so they win: `… NAME -- --batch-size 16`.
#
# Works from any folder. Relative paths in CKPT, TASKS and FLAG… start where you are; the data of named tasks are looked
# for in the repository (--data-root) and results go there (--output-dir). PYTHON names the interpreter; without it the
# repository's .venv is used where it exists.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

if [ "$#" -lt 2 ]; then
    echo "usage: bash eval/eval.sh CKPT NAME [TASKS] [FLAG…]   (see the top of $root/eval/eval.sh)" >&2
    exit 2
fi
if [ "${NPROC_PER_NODE:-1}" != 1 ] || [ "${WORLD_SIZE:-1}" != 1 ]; then
    echo "error: NPROC_PER_NODE=${NPROC_PER_NODE:-1} WORLD_SIZE=${WORLD_SIZE:-1}: one process evaluates; unset both" >&2
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
    case "$1" in *.jsonl*) data_root=() ;; esac
    shift
fi
if [ "${1:-}" = -- ]; then
    shift
fi

if [ -z "${PYTHON:-}" ]; then
    if [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; else PYTHON=python3; fi
fi
# ${array[@]+…}: an empty array counts as unset under -u in the bash of macOS.
exec "$PYTHON" "$root/evaluate_vqa.py" \
    --checkpoint "$checkpoint" --save_name "$name" --batch-size 4 --num-workers 2 --output-dir "$root/result" \
    ${data_root[@]+"${data_root[@]}"} ${tasks[@]+"${tasks[@]}"} "$@"
