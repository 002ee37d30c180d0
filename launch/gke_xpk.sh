#!/usr/bin/env bash
# TPU slices on GKE through xpk (pip install xpk); the cluster and the image must exist already.
#
#   launch/gke_xpk.sh --cluster=C --workload=NAME --tpu_type=v5litepod-16 --hosts=4 --image=IMAGE
#     [--num_slices=1] [--zone=Z] [--project=P] [--max_restarts=10] [--xpk='--storage=S --spot']
#     [--dry_run] -- --config=configs/mistral_7b.py --workdir=gs://BUCKET/W ...
#
# --hosts counts the hosts of all slices together. --image is launch/Containerfile, built with EXTRA=tpu,gcs and pushed.

# shellcheck source-path=SCRIPTDIR source=common.sh disable=SC2154 # read_options sets the variables
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options cluster workload tpu_type hosts image num_slices=1 zone project max_restarts=10 xpk -- "$@"
need cluster workload tpu_type image
need_number hosts num_slices
((hosts % num_slices == 0)) || fail "--hosts=$hosts cannot be spread over --num_slices=$num_slices"
need_tool xpk "pip install xpk"

# exec: xpk's shell passes SIGTERM to its child, which must be the training itself.
command="exec $(quoted python -m fqs_jax.launch "--expect_processes=$hosts" "${flags[@]}")"
read -ra more <<<"$xpk"
# A pod that stopped on SIGTERM and saved exits with 143, one that lost another with 134, and xpk restarts
# all. Bad input and other faults exit with 2, and xpk does not restart.
run xpk workload create "--cluster=$cluster" "--workload=$workload" "--tpu-type=$tpu_type" \
  "--num-slices=$num_slices" "--docker-image=$image" "--max-restarts=$max_restarts" \
  --termination-grace-period-seconds=300 ${zone:+"--zone=$zone"} ${project:+"--project=$project"} \
  "${more[@]}" "--command=$command"
