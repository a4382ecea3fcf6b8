#!/usr/bin/env bash
# The same command on every machine; they find each other at HEAD, which may be any one of them.
#   HEAD=node-0 NODES=4 deploy/several-nodes.sh RECIPE [KEY=VALUE]...
# STAGE is the recipe's, where it is not pretrain.
set -euo pipefail
: "${HEAD:?the host name or address of one of the machines}"
: "${NODES:?how many machines, or MIN:MAX}"
# A machine that the network loses for less than a quarter of an hour comes back by itself.
meeting="join_timeout=${JOIN_TIMEOUT:-1800},read_timeout=${READ_TIMEOUT:-900}"
place=()
if [ -n "${ADDRESS:-}" ]; then  # this machine's own, where its name does not lead to it
  place=(--local-addr "$ADDRESS")
  meeting+=",is_host=$([ "$ADDRESS" = "$HEAD" ] && echo true || echo false)"
fi
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # restarts are counted by each machine for itself
# Ranks that are asked to stop finish their step and save; torchrun's own patience is 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270}
exec torchrun --nnodes "$NODES" --nproc-per-node "${GPUS:-gpu}" --max-restarts "${RESTARTS:-3}" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "${RUN:-llamaseek}" \
  --rdzv-conf "$meeting" "${place[@]}" -m llamaseek "${STAGE:-pretrain}" --auto-resume "$@"
