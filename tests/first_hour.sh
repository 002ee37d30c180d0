#!/usr/bin/env bash
# The first hour of a new user, in an empty folder with python3 only: builds the wheel, installs it in an empty
# environment, runs the commands of docs/getting-started.md up to the picture, and compares the table that is
# printed with that of the page.
#
#   tests/first_hour.sh FOLDER [MORE_FLAGS_OF_LAUNCH]
#
# FOLDER is made. With more flags, such as --max_steps=2, there is no comparison. PYTHON=python3.12 is another python.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
page=$repository/docs/getting-started.md
mkdir -p "$1"
cd "$1"
folder=$PWD
shift

${PYTHON:-python3} -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH" PYTHONNOUSERSITE=1
unset PYTHONPATH
pip() { python -m pip --disable-pip-version-check --no-input "$@"; }
pip wheel --quiet --no-deps --wheel-dir "$folder/wheel" "$repository"
pip install --quiet "$folder"/wheel/*.whl
mkdir "$folder/empty"
cd "$folder/empty"
fqs --version

# The indented lines of the section, without their comments.
commands=$(sed -n '/^## From nothing to a picture/,/^## /p' "$page" | sed -n 's/^    \([^#]*[^# ]\) *#.*/\1/p')
[ "$(grep -c '^fqs ' <<<"$commands")" -ge 4 ] || { echo "error: $page has lost its commands" >&2; exit 1; }
while read -r command; do
  [[ $command == "fqs launch"* ]] && command="$command $*"
  echo "+ $command"
  bash -c "$command" </dev/null | tee "$folder/printed.txt"
  [[ $command != "fqs evaluate"* ]] || cp "$folder/printed.txt" "$folder/table.txt"
done <<<"$commands"

grep -q 'data-thoughts' workdir/tiny/report.html || { echo "error: there is no picture" >&2; exit 1; }
[ $# -gt 0 ] || python "$repository/tests/printed_table.py" "$page" "$folder/table.txt"
echo "From nothing to $PWD/workdir/tiny/report.html in $SECONDS s"
