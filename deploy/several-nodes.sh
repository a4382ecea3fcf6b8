#!/usr/bin/env bash
# The same command on every machine; they find each other at HEAD, which may be any one of them.
#   HEAD=node-0 NODES=4 deploy/several-nodes.sh RECIPE [KEY=VALUE]...
set -euo pipefail
: "${HEAD:?the host name or address of one of the machines}"
: "${NODES:?how many machines, or MIN:MAX}"
exec torchrun --nnodes "$NODES" --nproc-per-node "${GPUS:-gpu}" --max-restarts "${RESTARTS:-3}" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "${RUN:-llamaseek}" \
  -m llamaseek pretrain "$@"
