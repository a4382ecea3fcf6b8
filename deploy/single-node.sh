#!/usr/bin/env bash
# All GPUs of this machine on one recipe.
#   deploy/single-node.sh RECIPE [KEY=VALUE]...
set -euo pipefail
exec torchrun --standalone --nproc-per-node "${GPUS:-gpu}" --max-restarts "${RESTARTS:-3}" \
  -m llamaseek pretrain --auto-resume "$@"
