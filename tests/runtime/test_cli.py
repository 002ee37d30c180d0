"""Command lines: flags in files, overrides, and commands that programs hand on to other programs."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from fqs_jax.runtime import cli, config_flag
from fqs_jax.runtime.errors import UserError


def read(words: list[str]) -> tuple[dict[str, Any], flags.FlagValues]:
    """The config that the flags library makes of a command line, and the flags."""
    values = flags.FlagValues()
    fields = {"seeds": (0,), "name": "a", "on": False, "part": {"rate": 0.5}}
    line = ["program", *words]
    flags.DEFINE_integer("cell", 0, "Another flag.", flag_values=values)
    holder = config_flags.DEFINE_config_dict(
        "config", ml_collections.ConfigDict(fields), flag_values=values, sys_argv=line
    )
    values(line)
    return holder.value.to_dict(), values


@pytest.mark.parametrize(
    "line, handed_on",
    [
        ("--config.name=b --cell=3", ["--config.name=b"]),
        ("--config.seeds '(7,)' --cell 3", ["--config.seeds=(7,)"]),
        ("--cell 3 --config.part.rate -2 --config.name b", None),
        ("-config.name 'b = c' --config.on --cell=1", None),
        ("--noconfig.on --config.name=b", ["--noconfig.on", "--config.name=b"]),
        ("--config.on --config.name --config.on", None),  # a name like a flag
        ("--config.name=b --config.name=c", ["--config.name=b", "--config.name=c"]),
        ("--cell=3", []),
    ],
)
def test_overrides_mean_the_same_in_one_word_each(line, handed_on):
    words = shlex.split(line)
    meant, known = read(words)
    found = config_flag.overrides(words, known)
    assert read(found)[0] == meant
    assert handed_on is None or found == handed_on


CONFIG = """
import ml_collections

def get_config(name="a"):
    c = ml_collections.ConfigDict({"seed": 0, "count": 3, "name": name, "init_from": "", "data": {}})
    c.part = ml_collections.ConfigDict({"start": ml_collections.config_dict.placeholder(int)})
    c.part.start = 1
    c.data.cache_dir = ""
    return c
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "experiment.py"
    path.write_text(CONFIG)
    return path


def parse(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The config that a program reads from its command line, which sys.argv has afterwards."""
    known = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", known)
    monkeypatch.setattr(sys, "argv", ["program", *words])
    cli._parse(sys.argv, lambda: _define(known))
    return known.config


def _define(known: flags.FlagValues) -> None:
    config_flag.define("none.py", "Experiment.", known, sys.argv)


def test_an_optional_field_takes_none(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(monkeypatch, f"--config={experiment}", "--config.part.start=None")
    assert config.part.start is None and config.count == 3
    for value in (2, 0):
        line = (f"--config={experiment}", f"--config.part.start={value}")
        assert parse(monkeypatch, *line).part.start == value


@pytest.mark.parametrize(
    "word, expected",
    [
        ("--config.count=None", "--config.count=None: this field needs a value"),
        ("--config.part.start=none", "'none' is not a whole number"),
        ("--config.cuont=1", "no field 'cuont'; did you mean 'count'"),
        ("--flagfile=FOLDER/none", "cannot read .*none: no such file"),
        ("--flagfile=FOLDER", "is a folder, not a file"),
        ("--flagfile=/dev/zero", "is a device, not a file"),
        ("--flagfile=FOLDER/latin", "not UTF-8 at byte 3"),
        ("--flagfile=gs://bucket/flags", "is an address"),
        ("--config=gs://bucket/config.py", "is an address"),
        ("--config=/dev/zero", "is a device"),
        ("--config=FOLDER/none.py", "cannot read the config: No such file"),
    ],
)
def test_command_lines_that_are_refused(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, word: str, expected: str
) -> None:
    (experiment.parent / "latin").write_bytes(b"caf\xe9")
    words = [f"--config={experiment}", word.replace("FOLDER", str(experiment.parent))]
    with pytest.raises(UserError, match=expected) as refused:
        parse(monkeypatch, *(words if "--config=" not in word else words[1:]))
    assert "\n" not in str(refused.value)


def test_flags_of_a_file_are_overrides_like_others(
    experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are handed on, so that a recorded command makes the same run without the file."""
    inner, outer = experiment.with_name("inner"), experiment.with_name("outer")
    inner.write_text("--config.name=a b\n")
    outer.write_text(f"# comment\n\n--config.count=5\n--flagfile={inner}\n")
    config = parse(monkeypatch, f"--config={experiment}", "--flagfile=~/outer", "--config.seed=1")
    assert (config.seed, config.count, config.name) == (1, 5, "a b")
    handed_on = ["--config.count=5", "--config.name=a b", "--config.seed=1"]
    assert config_flag.overrides(known=flags.FLAGS) == handed_on
    again = parse(monkeypatch, f"--config={experiment}", *handed_on)
    assert again.to_dict() == config.to_dict()


def test_paths_of_a_config(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(monkeypatch, "--config=~/experiment.py:b", "--config.data.cache_dir=~/c")
    config_flag.expand_paths(config)
    assert config.name == "b" and config.init_from == ""
    assert config.data.cache_dir == str(experiment.parent / "c")
    config.init_from = "s3://bucket/model"
    with pytest.raises(UserError, match="is an address"):
        config_flag.expand_paths(config)


@pytest.mark.parametrize(
    "word", ["a", "a b", "$x 'y'", "a\nb\t\x1b[1m\\", "caf\xe9", "a\udcff'", "\u202e"]
)
def test_a_quoted_word_is_one_line_that_bash_reads_back(word: str) -> None:
    quoted = cli.quote(word)
    assert quoted.isprintable() and quoted.encode()
    command = ["bash", "-c", f"printf %s {quoted}"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == word.encode(errors="surrogateescape")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("def get_config():\n    pass\n", r"get_config\(\) returns nothing"),
        ("", r"the file has no function get_config\(\)"),
        ("def get_config():\n    return nothing\n", "broken.py:2: NameError: name 'nothing'"),
        ("def get_config(:\n", r"SyntaxError: invalid syntax \(broken.py, line 1\)"),
    ],
)
def test_configs_with_a_mistake(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    text: str,
    expected: str,
) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # of an earlier test
    with pytest.raises(UserError, match=expected):
        parse(monkeypatch, f"--config={tmp_path / 'broken.py'}")
    assert capfd.readouterr().err == ""
