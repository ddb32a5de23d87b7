#!/usr/bin/env bash
# The published name of finetune_ds.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/finetune_ds.sh" "$@"
