#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet that starts again after a failure.
#
#   launch/gke.sh --name rte --image REGISTRY/peft_jax:tpu --bucket BUCKET \
#     --accelerator tpu-v5-lite-podslice --topology 4x4 -- --config tfew --task rte
#
#   --image            built from docker/Dockerfile
#   --bucket           mounted on every host by GKE's Cloud Storage driver; the run is in runs/NAME
#   --topology         chips of a slice: 4x4, 16x16, 4x4x8 ...
#   --chips-per-host   of the node pool's machines (4)
#   --slices           so many (1)
#   --service-account  of Kubernetes, that may write to the bucket (default)
#   --print            show the manifest instead of applying it
# What follows -- goes to peft-jax train. Needs kubectl, and JobSet installed in the cluster.
set -euo pipefail
here=$(dirname "$0")

fail() { echo "error: $*" >&2; exit 2; }

name='' image='' bucket='' accelerator='' topology='' chips_per_host=4 slices=1
service_account=default print=
while [ $# -gt 0 ]; do
  case $1 in
    --name | --image | --bucket | --accelerator | --topology | --chips-per-host | --slices | \
      --service-account)
      [ $# -gt 1 ] || fail "$1 needs a value"
      variable=${1#--}
      printf -v "${variable//-/_}" %s "$2"
      shift 2
      ;;
    --print) print=yes; shift ;;
    --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$here/gke.sh"; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown flag $1; flags of peft-jax train stand behind --" ;;
  esac
done
for needed in name image bucket accelerator topology; do
  [ -n "${!needed}" ] || fail "give --$needed"
done
[[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "--topology $topology is not like 4x4 or 4x4x8"
chips=$((${topology//x/*}))
if ((chips < chips_per_host)); then chips_per_host=$chips; fi
((chips % chips_per_host == 0)) || fail "$chips chips are no number of hosts with $chips_per_host"

arguments=
for argument in "/data/runs/$name" "$@"; do
  argument=${argument//\\/\\\\}
  arguments+="${arguments:+, }\"${argument//\"/\\\"}\""
done

manifest=$(cat "$here/jobset.yaml")
fill() { manifest=${manifest//"\${$1}"/"$2"}; }
fill NAME "$name"
fill IMAGE "$image"
fill BUCKET "$bucket"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill CHIPS "$chips_per_host"
fill HOSTS "$((chips / chips_per_host))"
fill SLICES "$slices"
fill SERVICE_ACCOUNT "$service_account"
fill ARGUMENTS "$arguments"

if [ -n "$print" ]; then
  printf '%s\n' "$manifest"
else
  printf '%s\n' "$manifest" | kubectl apply -f -
  echo "kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
fi
