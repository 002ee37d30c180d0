#!/usr/bin/env bash
# Several machines with GPUs under SLURM: submits launch/slurm.sbatch.
#
#   launch/slurm.sh --nodes=N --gpus_per_node=G --time=HH:MM:SS [--sbatch='--partition=P --account=A']
#     [--dry_run] -- --config=configs/mistral_7b.py --workdir=/shared/W ...
#
# One task for each GPU, and every task sees all GPUs of its node: JAX expects this of a SLURM step.
# The working directory, the text and this repository must be on a file system that all nodes share; the first
# two may also be in a bucket (--workdir=gs://BUCKET/W).

# shellcheck source-path=SCRIPTDIR source=common.sh disable=SC2154 # read_options sets the variables
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options nodes gpus_per_node time sbatch -- "$@"
need_number nodes gpus_per_node
need time
need_tool sbatch "the cluster's login node"

[[ " ${flags[*]} " == *" --workdir"[=\ ]* ]] || fail "--workdir=DIR is missing behind --: a folder that all nodes share, or gs://BUCKET/NAME"
set_extra "${EXTRA:-cuda}" # cuda12 for drivers before 580
run make -C "$root" "EXTRAS=$extra" "$stamp" # here, because compute nodes may lack a network
read -ra more <<<"$sbatch"
run sbatch "--nodes=$nodes" "--ntasks-per-node=$gpus_per_node" "--gpus-per-node=$gpus_per_node" \
  "--time=$time" "--chdir=$root" "${more[@]}" "$root/launch/slurm.sbatch" \
  "--expect_processes=$((nodes * gpus_per_node))" "${flags[@]}"
