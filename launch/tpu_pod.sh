#!/usr/bin/env bash
# A TPU slice from its creation to its end, by queued resources.
#
#   bash launch/tpu_pod.sh create --name=pd --zone=us-east5-a --type=v5p-128 [--spot=yes]   asks for the slice
#   bash launch/tpu_pod.sh status --name=pd --zone=us-east5-a                              ACTIVE: it is there
#   bash launch/tpu_pod.sh run    --name=pd --zone=us-east5-a --nfs=10.0.0.2:/vol -- \
#     --config=configs/bagel_7b.py --workdir=/mnt/pdgen/run1 [--config.mesh.fsdp=64 ..]    copies this code, trains
#   bash launch/tpu_pod.sh logs   --name=pd --zone=us-east5-a                              what the first worker prints
#   bash launch/tpu_pod.sh stop   --name=pd --zone=us-east5-a                              SIGTERM: saves and ends
#   bash launch/tpu_pod.sh delete --name=pd --zone=us-east5-a                              gives the slice back
#
# Types: v5p-128 is v5p:4x4x4 of pdgen.compile (two cores a chip), v6e-256 is v6e:16x16. `--nfs` is a Filestore share that
# is mounted at /mnt/pdgen on all workers: they must share the workdir. The same `run` after a preemption goes on from the
# newest checkpoint. `--dry_run` prints the commands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/dry_run.sh

action="${1:-}"
[ $# = 0 ] || shift
training=()
own=()
while [ $# -gt 0 ]; do
  if [ "$1" = -- ]; then
    shift
    read_arguments "$@" # `--dry_run` is the script's wherever it stands.
    training=("${ARGUMENTS[@]+"${ARGUMENTS[@]}"}")
    break
  fi
  own+=("$1")
  shift
done
ARGUMENTS=()
read_arguments "${own[@]+"${own[@]}"}"

on_workers() { # on_workers WORKER COMMAND
  do_it gcloud compute tpus tpu-vm ssh "$(flag name)" --zone="$(flag zone)" --worker="$1" --command="$2"
}

case "$action" in
  create)
    need name zone type
    case "$(flag type)" in
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *)
        echo "tpu_pod.sh: unknown --type=$(flag type). Known: v5p-..., v6e-..." >&2
        exit 2
        ;;
    esac
    spot=()
    [ -z "$(flag spot)" ] || spot=(--spot)
    do_it gcloud compute tpus queued-resources create "$(flag name)" --node-id="$(flag name)" --zone="$(flag zone)" \
      --accelerator-type="$(flag type)" --runtime-version="$runtime" "${spot[@]+"${spot[@]}"}"
    ;;
  status)
    need name zone
    do_it gcloud compute tpus queued-resources describe "$(flag name)" --zone="$(flag zone)" --format='value(state.state)'
    ;;
  run)
    need name zone nfs
    own=("${ARGUMENTS[@]}")
    ARGUMENTS=("${training[@]+"${training[@]}"}")
    if [ -z "$(flag config)" ] || [ -z "$(flag workdir)" ]; then
      echo 'tpu_pod.sh run: after -- come the arguments of pdgen.train, --config=... and --workdir=... among them.' >&2
      exit 2
    fi
    ARGUMENTS=("${own[@]}")
    archive="${TMPDIR:-/tmp}/pdgen-$(flag name).tgz"
    do_it git archive --format=tar.gz --output="$archive" HEAD
    do_it gcloud compute tpus tpu-vm scp "$archive" "$(flag name):pdgen.tgz" --zone="$(flag zone)" --worker=all
    quoted="$(printf ' %q' "${training[@]}")"
    share="$(printf '%q' "$(flag nfs)")"
    on_workers all "sudo mkdir -p /mnt/pdgen && { mountpoint -q /mnt/pdgen || sudo mount -t nfs $share /mnt/pdgen; }"
    on_workers all "mkdir -p pdgen && tar -xzf pdgen.tgz -C pdgen && cd pdgen && . launch/venv.sh && venv '[tpu]'"
    on_workers all "cd pdgen && PDGEN_TPU_POD=1 nohup .venv/bin/python -m pdgen.train$quoted > ~/pdgen.log 2>&1 & echo \$! > ~/pdgen.pid"
    ;;
  logs)
    need name zone
    on_workers 0 'tail -n 100 -F ~/pdgen.log'
    ;;
  stop)
    need name zone
    # shellcheck disable=SC2016 # The worker expands it.
    on_workers all 'kill -TERM "$(cat ~/pdgen.pid)"'
    ;;
  delete)
    need name zone
    do_it gcloud compute tpus queued-resources delete "$(flag name)" --zone="$(flag zone)" --force --quiet
    ;;
  *)
    sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' >&2
    exit 2
    ;;
esac
