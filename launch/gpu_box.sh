#!/usr/bin/env bash
# One machine with several GPUs, all used by one process.
#
#   launch/gpu_box.sh [--gpus=N] [--dry_run] -- --config=configs/mistral_7b.py --workdir=W ...
#
# With --gpus=N the run does not start with more or fewer GPUs (only those in CUDA_VISIBLE_DEVICES
# count). EXTRA=cuda12 installs CUDA 12, for drivers before 580. Ctrl-C or SIGTERM saves and stops; the
# same command resumes.

# shellcheck source-path=SCRIPTDIR source=common.sh disable=SC2154 # read_options sets the variables
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options gpus -- "$@"
need_tool nvidia-smi "the driver of the machine"

if [[ -n $gpus && $dry_run == no ]]; then
  need_number gpus
  visible=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}
  IFS=, read -ra visible <<<"$visible"
  ((${#visible[@]} == gpus)) || fail "${#visible[@]} GPUs are visible here, expected were $gpus"
fi

cd "$root"
set_extra "${EXTRA:-cuda}"
run make "EXTRAS=$extra" "$stamp"
become .venv/bin/python -m fqs_jax.launch --expect_processes=1 "${flags[@]}"
