#!/usr/bin/env bash
# All GPUs of this machine on one recipe.
#   deploy/single-node.sh RECIPE [KEY=VALUE]...
# STAGE is the recipe's, where it is not pretrain.
set -euo pipefail
# Ranks that are asked to stop finish their step and save; torchrun's own patience is 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270}
exec torchrun --standalone --nproc-per-node "${GPUS:-gpu}" --max-restarts "${RESTARTS:-3}" \
  -m llamaseek "${STAGE:-pretrain}" --auto-resume "$@"
