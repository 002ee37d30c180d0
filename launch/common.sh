# Sourced by the other scripts here. Options are --name=value; flags after -- go to fqs_jax.launch.
# shellcheck shell=bash disable=SC2034
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "error: $*" >&2
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash is ${BASH_VERSION}, 4.4 or newer is needed"

# read_options NAME[=DEFAULT]... -- ARGUMENT...: sets the variable NAME for --NAME=value, and also
# dry_run (yes or no) and the array flags.
read_options() {
  local name names=()
  while [[ $1 != -- ]]; do
    name=${1%%=*}
    names+=("$name")
    printf -v "$name" '%s' "${1:${#name}+1}"
    shift
  done
  shift
  dry_run=no flags=()
  while (($#)); do
    case $1 in
      --) flags=("${@:2}") && return ;;
      --dry_run) dry_run=yes ;;
      --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
      --*=*)
        name=${1%%=*} name=${name#--}
        [[ " ${names[*]} " == *" $name "* ]] || fail "$0 has no option --$name; see --help"
        printf -v "$name" '%s' "${1#*=}"
        ;;
      *) fail "$1 is not --name=value; flags of fqs_jax.launch come after --" ;;
    esac
    shift
  done
}

# need NAME...: fails unless all these options are set.
need() {
  local name
  for name in "$@"; do
    [[ -n ${!name} ]] || fail "--$name is missing; see --help"
  done
}

# need_number NAME...: fails unless all these options are whole numbers above 0.
need_number() {
  local name
  need "$@"
  for name in "$@"; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "--$name=${!name} is not a whole number above 0"
  done
}

# need_tool TOOL WHERE: fails unless TOOL is installed. A dry run skips this, so it works anywhere.
need_tool() {
  [[ $dry_run == yes ]] || command -v "$1" >/dev/null || fail "$1 is not installed here: see $2"
}

# set_extra NAME: sets extra and stamp, what `make` installs: with gcs if a flag names a place in a bucket.
set_extra() {
  extra=$1
  [[ " ${flags[*]}" != *gs://* ]] || extra+=,gcs
  stamp=.venv/.installed-${extra//,/-}
}

# quoted WORD...: prints one line that bash reads back as the same words.
quoted() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s' "${line# }"
}

# run COMMAND...: runs a command; in a dry run prints it.
run() {
  if [[ $dry_run == yes ]]; then
    quoted "$@" && echo
  else
    "$@"
  fi
}

# become COMMAND...: the last command. It replaces this script, and so receives its signals.
become() {
  [[ $dry_run == yes ]] || exec "$@"
  run "$@"
}
