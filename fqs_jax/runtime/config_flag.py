"""The flag --config: the file of an experiment or a sweep, and the overrides of its fields."""

from __future__ import annotations

import functools
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from fqs_jax.runtime import inputs, paths, shipped_configs
from fqs_jax.runtime.errors import UserError

_LIBRARY = re.compile(r"/(site|dist)-packages/(?!fqs_jax/configs)|/fqs_jax/runtime/|/lib/python3")
_OF_STAGES = ("objective", "steps", "learning_rate", "start", "teacher", "n_ahead", "n_ahead_talk")
PATH_FIELDS = ("init_from", "data.cache_dir", "data.tfds_dir")  # of an experiment

flags.disclaim_key_flags()  # a flag that is defined here belongs to the caller, for --help


def define(
    default: str | None,
    text: str,
    known: flags.FlagValues = flags.FLAGS,
    words: Sequence[str] | None = None,
) -> flags.FlagHolder[Any]:
    """Define --config, whose fields can be overridden: those that may be None take the word None.

    Args:
      default: file of the config, or the name of a shipped one.
      words: a command line with the program; None = this program's.
    """
    config_flags.register_flag_parser_for_type(int, _IntegerOrNoneParser())
    argv = None if words is None else list(words)
    located = default and locate(default)
    flag = config_flags.DEFINE_config_file(
        "config", located, text, known, lock_config=True, sys_argv=argv
    )
    known["config"].default_as_str = f"'{default}'"  # for --help
    return flag


def expand_paths(config: ConfigDict) -> None:
    """Expand `~` in the paths of an experiment's config, in place.

    Raises:
      UserError: one is the address of another machine.
    """
    for field in PATH_FIELDS:
        *parents, name = field.split(".")
        part = functools.reduce(lambda part, parent: part.get(parent, {}), parents, config)
        if value := part.get(name):
            read = paths.expand_local if field == "data.tfds_dir" else paths.expand
            part[name] = str(read(value))


def locate(given: str) -> str:
    """The file of a config, given as its path or name, perhaps with a colon and an argument after it.

    Raises:
      UserError: no shipped config has this name, or it is an address or no file.
    """
    expanded = paths.expand_local(given)  # refuses addresses
    written = str(expanded) if given.startswith("~") else given
    name, colon, argument = written.partition(":")
    found = shipped_configs.locate(name)
    if Path(found).exists():
        inputs.check_file(Path(found))
    return found + colon + argument


def file(known: flags.FlagValues = flags.FLAGS) -> str:
    """The file of the config as it was given; the name of a shipped one."""
    path, colon, argument = config_flags.get_config_filename(known["config"]).partition(":")
    return shipped_configs.shorten(path) + colon + argument


def is_default() -> bool:
    """True if the command line names no config."""
    return not flags.FLAGS["config"].present


def overrides(
    words: Sequence[str] | None = None, known: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """The overrides of config fields on the command line, each as one word, `--config.field=value`.

    Args:
      words: a command line without the program; None = this program's.
      known: flags that have parsed it. They distinguish a field that takes the next word from a bool.
    """
    left = iter(sys.argv[1:] if words is None else words)
    found = []
    for word in left:
        name = re.fullmatch(r"--?((?:no)?config\..+)", word, re.DOTALL)
        if not name:
            continue
        is_complete = "=" in name[1] or name[1] not in known or known[name[1]].boolean
        found.append(f"--{name[1]}" if is_complete else f"--{name[1]}={next(left, '')}")
    return found


def expand_file(argv: list[str]) -> None:
    """Put the file of a config into the value of --config, in place; errors are those of `locate`."""
    for i, word in enumerate(argv):
        match = re.fullmatch(r"(--?config)(?:=(.*))?", word, re.DOTALL)
        if match is None or (match[2] is None and i + 1 == len(argv)):
            continue
        if match[2] is None:
            argv[i + 1] = locate(argv[i + 1])
        else:
            argv[i] = f"{match[1]}={locate(match[2])}"


def check(known: flags.FlagValues = flags.FLAGS) -> None:
    """Read the config that a command line names.

    Raises:
      UserError: a field that needs a value is None.
      Exception: anything else that reading it raises; see `problem`.
    """
    if known.config is None:
        raise UserError(
            f"{file(known)}: get_config() returns nothing; it should return a ConfigDict"
        )
    known.config.get("seed")  # a missing file is an error at the first use
    for field, value in config_flags.get_override_values(known["config"]).items():
        if value is None and not _may_be_none(known.config, field):
            raise UserError(f"--config.{field}=None: this field needs a value")


def problem(error: Exception) -> str:
    """One line about an exception from reading a config or overriding its fields."""
    text = str(error)
    if meant := re.search(r'Did you mean "(.+?)" instead of "(.+?)"', text):
        return f"the config has no field {meant[2]!r}; did you mean {meant[1]!r}?"
    name = re.fullmatch(r"\W*(\w+)\W*", text)
    if name and isinstance(error, AttributeError | KeyError):
        return f"the config has no field {name[1]!r}; {_where_it_is(name[1])}"
    if isinstance(error, OSError):  # wrapped by the library, with the cause at the end
        reason = re.split(r"failure to load: |\[Errno \d+\] ", text)[-1]
        return f"cannot read the config: {reason.strip()}"
    if isinstance(error, ModuleNotFoundError):
        return (
            f"the config imports {error.name}, which is not on Python's path (nor is the current "
            "folder); set PYTHONPATH to its folder"
        )
    if "has no attribute 'get_config'" in text:
        return "cannot read the config: the file has no function get_config()"
    return (
        f"cannot read the config: {_place(error)}{type(error).__name__}: {' '.join(text.split())}"
    )


def _where_it_is(name: str) -> str:
    """The places where a field may be that is not at the top of a config."""
    if name in _OF_STAGES:
        return f"each stage has its own: --config.stage_N.{name}"
    return f"{shipped_configs.FOLDER / 'common.py'} has the fields"


def _place(error: Exception) -> str:
    """The file and line of a config that raised an error: the last one outside of libraries."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.endswith(".py") and not _LIBRARY.search(frame.filename):
            return f"{frame.filename}:{frame.lineno}: "
    return ""


def _may_be_none(config: ConfigDict, field: str) -> bool:
    """True if a field was made as a placeholder, which knows its type and may be empty."""
    *parents, name = field.split(".")
    part = functools.reduce(lambda part, parent: part[parent], parents, config)
    return isinstance(dict(part.items(preserve_field_references=True))[name], FieldReference)


class _IntegerOrNoneParser(flags.IntegerParser):
    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else super().parse(argument)
