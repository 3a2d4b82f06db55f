#!/usr/bin/env bash
# Trains on a Cloud TPU slice: asks for it, waits, installs this checkout on every host, runs the same
# command on all of them, asks again if the slice is taken away, and gives it back at the end.
#
#   launch/tpu_pod.sh --name rte --zone us-west4-a --type v5litepod-16 \
#     --folder gs://BUCKET/runs/rte [--spot] -- --config tfew --task rte --backbone gs://BUCKET/t0_3b
#
#   --name      of the queued resource and of its slice
#   --type      v4-32, v5litepod-16, v5p-128, v6e-64 ...
#   --folder    of the run, in a bucket that the slice's service account may write to
#   --runtime   software of the hosts; by default the one that goes with the type
#   --slices    so many of the type, connected by the data centre's network (multislice)
#   --spot      cheaper, and taken away at any time
#   --retries   how often a slice that was taken away is asked for again (20)
#   --keep      leave the slice running at the end
# What follows -- goes to peft-jax train. Needs gcloud, logged in, with a project.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $*" >&2; exit 2; }

name='' zone='' type='' folder='' runtime='' slices=1 spot=() retries=20 keep=
while [ $# -gt 0 ]; do
  case $1 in
    --name | --zone | --type | --folder | --runtime | --slices | --retries)
      [ $# -gt 1 ] || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --spot) spot=(--spot); shift ;;
    --keep) keep=yes; shift ;;
    --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "launch/tpu_pod.sh"; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown flag $1; flags of peft-jax train stand behind --" ;;
  esac
done
for needed in name zone type folder; do
  [ -n "${!needed}" ] || fail "give --$needed"
done
[[ $folder == gs://* ]] || fail "--folder $folder is not in a bucket (gs://BUCKET/PATH)"

case ${runtime:-$type} in
  v2-* | v3-* | v4-*) runtime=${runtime:-tpu-ubuntu2204-base} ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) [ -n "$runtime" ] || fail "--type $type is unknown here; give --runtime too" ;;
esac

if [ "$slices" -gt 1 ]; then
  where=(--node-count "$slices" --node-prefix "$name")
  nodes=()
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
else
  where=(--node-id "$name")
  nodes=("$name")
fi

state() {
  gcloud compute tpus queued-resources describe "$name" --zone "$zone" \
    --format 'value(state.state)' 2>/dev/null || true
}

give_back() {
  if [ -n "$(state)" ]; then
    gcloud compute tpus queued-resources delete "$name" --zone "$zone" --force --quiet || true
  fi
}

# Leaves an ACTIVE slice, or returns 1.
obtain() {
  case $(state) in
    ACTIVE) return 0 ;;
    SUSPEND* | FAILED | DELETING) give_back ;;
  esac
  if [ -z "$(state)" ]; then
    gcloud compute tpus queued-resources create "$name" --zone "$zone" "${where[@]}" \
      --accelerator-type "$type" --runtime-version "$runtime" ${spot[@]+"${spot[@]}"}
  fi
  while :; do
    case $(state) in
      ACTIVE) return 0 ;;
      SUSPEND* | FAILED) return 1 ;;
    esac
    sleep "${POLL_SECONDS:-30}"
  done
}

# on_all COMMAND: on every host of every slice, at the same time.
on_all() {
  local node jobs=() code=0
  for node in "${nodes[@]}"; do
    gcloud compute tpus tpu-vm ssh "$node" --zone "$zone" --worker all --command "$1" &
    jobs+=($!)
  done
  for node in "${jobs[@]}"; do wait "$node" || code=1; done
  return "$code"
}

install() {
  local archive node
  archive=$(mktemp --suffix .tar.gz)
  git archive --format tar.gz --output "$archive" HEAD
  for node in "${nodes[@]}"; do
    gcloud compute tpus tpu-vm scp "$archive" "$node:peft_jax.tar.gz" --zone "$zone" --worker all
  done
  rm "$archive"
  # The hosts' own Python is older than we need; uv brings one.
  on_all 'set -e; mkdir -p peft_jax; tar -xzf peft_jax.tar.gz -C peft_jax
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --allow-existing --python 3.11 peft_jax_env
    ~/.local/bin/uv pip install --quiet --python peft_jax_env/bin/python "./peft_jax[tpu]"'
}

[ -n "$keep" ] || trap give_back EXIT
flags=$(printf ' %q' "$@")
for ((attempt = 0; attempt <= retries; attempt++)); do
  if obtain && install && on_all \
    "PEFT_JAX=~/peft_jax_env/bin/peft-jax peft_jax/launch/worker.sh '$folder'$flags"; then
    echo "done: $folder"
    exit 0
  fi
  # A run that failed on a slice that is still there fails again; its own words are above.
  if [ "$(state)" = ACTIVE ]; then exit 1; fi
  echo "the slice was taken away (attempt $((attempt + 1)) of $((retries + 1)))" >&2
done
exit 1
