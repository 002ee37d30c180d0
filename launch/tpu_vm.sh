#!/usr/bin/env bash
# On all workers of a Cloud TPU VM: copies the code, makes the environment, starts the training.
#
#   launch/tpu_vm.sh --tpu=NAME --zone=Z --hosts=4 [--project=P] [--setup=COMMAND] [--python=python3.11]
#     [--dry_run] -- --config=configs/mistral_7b.py --workdir=gs://BUCKET/W ...
#   launch/tpu_vm.sh --tpu=NAME --zone=Z --action=follow      shows the workers' output from the beginning
#   launch/tpu_vm.sh --tpu=NAME --zone=Z --action=stop        SIGTERM: they save; the first command resumes
#
# The training continues when this terminal closes. --setup runs first on every worker (for example to
# install Python 3.11, or to mount a shared folder, where --workdir and the text are in no bucket).

# shellcheck source-path=SCRIPTDIR source=common.sh disable=SC2154,SC2016 # read_options sets the variables
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options tpu zone project hosts setup python=python3 action=start -- "$@"
need tpu zone
need_tool gcloud "https://cloud.google.com/sdk"
where=("--zone=$zone" ${project:+"--project=$project"} --worker=all)

alive='grep -qs fqs_jax.launch "/proc/$(cat ~/fqs_jax/run.pid 2>/dev/null)/cmdline"'
gone='{ echo "nothing is running here"; exit 0; }'
case $action in
  follow) remote="$alive || $gone; tail -n +1 --pid=\$(cat ~/fqs_jax/run.pid) -f ~/fqs_jax/run.log" ;;
  stop) remote="$alive || $gone; kill -TERM \$(cat ~/fqs_jax/run.pid)" ;;
  start)
    need_number hosts
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
    archive=$temporary/fqs_jax.tgz
    run tar -C "$root" -czf "$archive" --exclude=__pycache__ \
      Makefile setup.cfg pyproject.toml README.md LICENSE fqs_jax configs launch
    run gcloud compute tpus tpu-vm scp "$archive" "$tpu:fqs_jax.tgz" "${where[@]}"
    set_extra tpu
    training=$(quoted .venv/bin/python -m fqs_jax.launch "--expect_processes=$hosts" "${flags[@]}")
    # One command per line. setsid and nohup shield the training from a closed connection and Ctrl-C.
    remote="if $alive; then echo 'error: a run is alive here: --action=follow or --action=stop' >&2; exit 2; fi
set -e
${setup:-true}
mkdir -p ~/fqs_jax
tar -xzf ~/fqs_jax.tgz -C ~/fqs_jax
cd ~/fqs_jax
make PYTHON=$(quoted "$python") EXTRAS=$extra $stamp >make.log 2>&1 || { tail make.log >&2; exit 1; }
: >run.log # before tail looks for it
setsid nohup $training >>run.log 2>&1 </dev/null &
echo \$! >run.pid
tail -n +1 --pid=\$! -f run.log
wait \$!"
    ;;
  *) fail "--action=$action is not start, follow or stop" ;;
esac
run gcloud compute tpus tpu-vm ssh "$tpu" "${where[@]}" "--command=$remote"
