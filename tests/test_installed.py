"""A wheel, installed into a folder: the programs and configs work without the repository."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

import fqs_jax
from configs.sweeps import default
from tests.conftest import ONE_DEVICE, REPO
from tests.test_import_path import PROGRAMS

# What a build needs.
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


def checked(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, in which a build may write."""
    if not all(importlib.util.find_spec(name) for name in ("pip", "setuptools")):
        pytest.skip("building a wheel needs pip and setuptools (pip install -e '.[dev]')")
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(REPO / name, source)
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("configs", "fqs_jax"):
        shutil.copytree(REPO / name, source / name, symlinks=True, ignore=skipped)
    place = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    checked(*PIP, "wheel", *offline, f"--wheel-dir={place}", str(source), cwd=place)
    [file] = place.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs Python in an empty folder, where it finds the installed package before any other."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    checked(*PIP, "install", "--no-deps", "--no-index", f"--target={site}", str(wheel), cwd=empty)
    variables = os.environ | ONE_DEVICE | {"PYTHONPATH": str(site)}

    def run(*words):
        command = (sys.executable, "-P", *words)
        return subprocess.run(command, cwd=empty, env=variables, capture_output=True, text=True)

    where = run("-c", "import fqs_jax; print(fqs_jax.__file__)")
    assert where.stdout.startswith(str(site)), where.stdout
    return run


def test_what_is_in_the_wheel(wheel):
    assert wheel.name.startswith(f"fqs_jax-{fqs_jax.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"fqs_jax"}
    assert "fqs_jax/py.typed" in names and "fqs_jax/reporting/report.css" in names
    files = {str(path.relative_to(REPO)) for path in REPO.glob("configs/**/*.py")}
    assert {f"fqs_jax/{file}" for file in files} == {n for n in names if "/configs/" in n}


def test_shipped_configs_and_defaults(installed):
    """`--stage=2` alone: the built-in example, in its own folder, and the command for what is missing."""
    done = installed("-m", "fqs_jax.launch", "--stage=2")
    first = done.stdout.splitlines()[0]
    assert "--config=tiny" in first and "--workdir=workdir/tiny" in first
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    command = "python -m fqs_jax.launch --config=tiny --workdir=workdir/tiny --stage=0,1,2"
    assert done.stderr.endswith(f"run all of them with: {command}\n")


@pytest.mark.parametrize(
    "given, expected",
    [
        ("configs/tiny.py", "no stage 'x'; there are 0 (base)"),
        ("mistral_7b_distill", "this config fine-tunes a checkpoint"),
        ("mistral7b", "there is no config 'mistral7b'; did you mean mistral_7b"),
    ],
)
def test_configs_by_name(installed, given, expected):
    done = installed("-m", "fqs_jax.launch", f"--config={given}", "--stage=x", "--workdir=W")
    assert done.returncode == 2 and expected in done.stderr, done.stderr


def test_sweeps_by_name(installed):
    done = installed("-m", "fqs_jax.sweep", "--config=sweeps/default", "--list", "--workdir=W")
    sweep = default.get_config()
    cells = len(sweep.variants) * len(sweep.seeds)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == cells, done.stderr


def test_ones_own_config_imports_shipped_ones(installed, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from fqs_jax.configs import tiny\nget_config = tiny.get_config\n")
    done = installed("-m", "fqs_jax.launch", f"--config={file}", "--stage=x")
    assert done.stdout.startswith("Not given, so: --workdir=workdir/mine\n")
    assert "no stage 'x'; there are 0 (base)" in done.stderr


def test_versions(installed):
    expected = f"fqs_jax {fqs_jax.__version__}\n"
    assert installed("-m", "fqs_jax", "--version").stdout == expected
    for program in (*PROGRAMS, "lm_eval_adapter"):
        assert installed("-m", "fqs_jax", program, "--version").stdout == expected, program
