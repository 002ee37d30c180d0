"""Command lines: overrides that programs hand on to other programs."""

import shlex
from typing import Any

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from fqs_jax.runtime import config_flag


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
