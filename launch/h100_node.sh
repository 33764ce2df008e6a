#!/usr/bin/env bash
# Trains on all GPUs of this machine. A run that dies is started again from its newest checkpoint; SIGTERM saves and ends.
#
#   bash launch/h100_node.sh [--dry_run] --config=configs/bagel_7b.py --workdir=/data/run1 [--config.train.steps=100 ..]
#
# A run that dies within RETRY_AFTER seconds (120) is not started again: it would die of the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/dry_run.sh
. launch/gpu_settings.sh
. launch/venv.sh
read_arguments "$@"
need config workdir

do_it venv '[cuda]'
if [ -n "$DRY_RUN" ]; then
  do_it env "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION" "XLA_FLAGS=$XLA_FLAGS" \
    .venv/bin/python -m pdgen.train "${ARGUMENTS[@]}"
  exit
fi

stopped=''
child=''
trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child"' TERM INT
while true; do
  began=$SECONDS
  .venv/bin/python -m pdgen.train "${ARGUMENTS[@]}" &
  child=$!
  code=0
  wait "$child" || code=$?
  # A signal ends the first wait; the run is still saving.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" && code=0 || code=$?
  done
  if [ "$code" = 0 ] || [ -n "$stopped" ]; then
    exit "$code"
  fi
  if [ $((SECONDS - began)) -lt "${RETRY_AFTER:-120}" ]; then
    echo "The run ended with $code after $((SECONDS - began)) s: not started again." >&2
    exit "$code"
  fi
  echo "The run ended with $code: starting it again from its newest checkpoint." >&2
done
