"""What the programs import: nothing from the current folder, and nothing heavy for --help."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPO

PROGRAMS = (
    "convert",
    "demo",
    "evaluate",
    "generate",
    "inspect",
    "launch",
    "plan",
    "prepare",
    "report",
    "sweep",
)
HEAVY = ("jax", "flax", "optax", "orbax", "scipy", "matplotlib", "tensorflow_datasets", "grain")
# A few of those that the programs import, and one of Python's own.
PLANTED = ("numpy", "json", "absl", "jax", "libtpu", "rich", "ml_collections", "multiprocessing")


def python(*arguments, cwd, **environment):
    variables = os.environ | {"PYTHONPATH": str(REPO)} | environment
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """A folder with modules that leave a file when they are imported."""
    folder = tmp_path_factory.mktemp("trap")
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'run')!r}, 'w').write({name!r})\n")
    return folder


@pytest.mark.parametrize(
    "way",
    [("-m", "fqs_jax.generate"), ("-P", "-m", "fqs_jax.generate"), ("-m", "fqs_jax", "generate")],
)
def test_modules_of_the_current_folder_are_not_imported(trap, way):
    done = python(*way, "--checkpoint=.", "--prompt=a", cwd=trap)
    assert not (trap / "run").exists(), (trap / "run").read_text()
    assert done.returncode == 2 and done.stderr.startswith("error: . is no Hugging Face folder")


def test_processes_that_a_program_starts_do_not_import_them_either(trap):
    code = (
        "import subprocess, sys; from fqs_jax.runtime import doors; doors.run(lambda:"
        "subprocess.run([sys.executable, '-c', 'import numpy, multiprocessing']))"
    )
    done = python("-P", "-c", code, cwd=trap)
    assert done.returncode == 0 and not (trap / "run").exists(), done.stderr


def test_a_package_in_the_current_folder_is_used(tmp_path):
    """As in a checkout of the repository, whose configs import each other."""
    shutil.copytree(
        REPO / "fqs_jax", tmp_path / "fqs_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "neighbour.py").write_text("from fqs_jax.curriculum import row\n")
    (tmp_path / "c.py").write_text(
        "import neighbour, ml_collections\n"
        "def get_config():\n"
        "    fields = {'requires_init_from': True, 'init_from': '', 'path': neighbour.__file__}\n"
        "    return ml_collections.ConfigDict(fields)\n"
    )
    done = python(
        "-m", "fqs_jax.launch", "--config=c.py", "--workdir=W", cwd=tmp_path, PYTHONPATH=""
    )
    assert done.stderr == "error: this config fine-tunes a checkpoint: give --init_from=HF_DIR\n"


def test_elsewhere_the_message_says_how_to_import_a_neighbour(tmp_path):
    (tmp_path / "neighbour.py").touch()
    (tmp_path / "c.py").write_text("import neighbour\n")
    done = python("-m", "fqs_jax.launch", "--config=c.py", "--workdir=W", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(
        "error: the config imports neighbour, which is not on Python's path"
    )


LOADED = """
import json, runpy, sys
program = sys.argv.pop(1)
try:
    runpy.run_module(f"fqs_jax.{program}", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_waits_for_nothing_heavy(program):
    """JAX alone takes most of a second to import."""
    done = python("-c", LOADED, program, "--help", cwd=REPO)
    assert "flags:" in done.stdout
    assert not set(HEAVY) & set(json.loads(done.stderr))


def test_the_command_fqs(tmp_path):
    names = python("-m", "fqs_jax", "--help", cwd=tmp_path)
    lines = names.stdout.splitlines()
    for program in (*PROGRAMS, "lm_eval_adapter"):
        [described] = [line for line in lines if line.startswith(f"  {program} ")]
        assert len(described.split()) > 3
    assert python("-m", "fqs_jax", cwd=tmp_path).stdout == names.stdout
    unknown = python("-m", "fqs_jax", "trian", cwd=tmp_path)
    assert unknown.returncode == 2 and unknown.stderr.startswith("error: no program 'trian'; there")


def test_the_help_of_fqs_imports_no_program(tmp_path):
    """The list is there before anything but Python's own modules is imported."""
    code = "import sys; from fqs_jax import __main__ as m; m.overview(); print(*sys.modules)"
    found = {name.partition(".")[0] for name in python("-c", code, cwd=tmp_path).stdout.split()}
    assert "fqs_jax" in found and not found & {*HEAVY, "absl", "numpy", "ml_collections"}


def test_the_help_of_evaluate_begins_with_its_four_commands():
    shown = python("-m", "fqs_jax.evaluate", "--help", cwd=REPO).stdout.partition("flags:")[0]
    for command in ("--text=", "--all_stages", "--task=", "--watch"):
        assert f"\n  {command}" in shown
