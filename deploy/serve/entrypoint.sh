#!/bin/sh
# Serves the model at MODEL on all interfaces; arguments are those of `llamaseek serve`.
# With --check: whether the server on this machine is ready, for health checks.
set -eu
: "${MODEL:=/models/model}" "${PORT:=8000}"
if [ "${1:-}" = "--check" ]; then
  exec python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$PORT/ready', timeout=4)"
fi
if [ ! -e "$MODEL" ] && [ "${MODEL#/}" != "$MODEL" ]; then
  echo "MODEL: $MODEL does not exist; mount a model folder or a GGUF file there" >&2
  exit 2
fi
exec python -m llamaseek serve "$MODEL" --host 0.0.0.0 --port "$PORT" "$@"
