#!/usr/bin/env bash
# Runs `peft-jax train` on one host of a run, and goes on where the run in FOLDER stopped.
#
#   launch/worker.sh FOLDER [flags of peft-jax train]
#
# FOLDER is a path that all hosts see, or gs://BUCKET/PATH. Of a bucket, every host works in a folder
# of its own, checkpoints go to the bucket directly, and the first host copies the rest there, every
# minute and at the end. Where FOLDER holds a run, --resume is added: the same command starts a run
# and starts it again after a failure. The exit code is peft-jax's.
set -euo pipefail

folder=${1:?usage: worker.sh FOLDER [flags of peft-jax train]}
shift
program=${PEFT_JAX:-peft-jax}

# Sets `resume` to what is to be added for the run in a folder.
look() {
  resume=()
  if [ -f "$1/config.json" ]; then resume=(--resume); fi
}

if [[ $folder != gs://* ]]; then
  look "$folder"
  exec "$program" train --output "$folder" ${resume[@]+"${resume[@]}"} "$@"
fi

output=${WORK:-$HOME/runs}/$(basename "$folder")
mkdir -p "$output"
# All that is there but checkpoints, which are read from the bucket; nothing is there at first.
gcloud storage rsync --recursive --exclude '^checkpoints/' "$folder" "$output" || true
look "$output"
if [ ${#resume[@]} -eq 0 ]; then rm -rf "$output"; fi

# Which host of the slice this is: GKE says it in the environment, a TPU VM's metadata elsewhere.
host=${TPU_WORKER_ID:-}
if [ -z "$host" ]; then
  at=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
  host=$(curl --silent --fail --max-time 10 -H 'Metadata-Flavor: Google' "$at" || echo 0)
fi

# What the first host compiles, the others and the next start read.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${folder%/*}/compiled}

copy() {
  if [ "$host" = 0 ] && [ -d "$output" ]; then
    gcloud storage rsync --recursive --exclude '^checkpoints/' "$output" "$folder" >/dev/null 2>&1
  fi
}

"$program" train --output "$output" --training.checkpoint-folder "$folder/checkpoints" \
  ${resume[@]+"${resume[@]}"} "$@" &
run=$!
# The run saves on SIGTERM, and so must hear of it.
trap 'kill -TERM "$run" 2>/dev/null || true' TERM INT
while kill -0 "$run" 2>/dev/null; do
  sleep "${COPY_SECONDS:-60}" &
  pause=$!
  wait -n "$run" "$pause" || true
  kill "$pause" 2>/dev/null || true
  copy || echo "warning: copying to $folder failed; it is tried again" >&2
done
code=0
wait "$run" || code=$?
copy || { echo "error: the results are in $output; copying them to $folder failed" >&2; code=${code/#0/1}; }
exit "$code"
