"""The command line of every program: its flags, and the set-up of JAX.

JAX is imported where it is used, so that --help answers at once.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import app, flags, logging

from fqs_jax import __version__
from fqs_jax.runtime import (
    compiled_programs,
    config_flag,
    doors,
    huge_pages,
    inputs,
    orbax_errors,
    paths,
    processes,
    virtual_devices,
)
from fqs_jax.runtime.errors import UserError, printable

if TYPE_CHECKING:
    from jax.sharding import Mesh

flags.disclaim_key_flags()  # a flag that is defined here belongs to the caller, for --help


def run(
    main: Callable[[Sequence[str]], None],
    define_flags: Callable[[], None] = lambda: None,
    arguments: int = 0,
    computes_long: bool = False,
) -> None:
    """Run an absl program, and end as `doors.run` does.

    Args:
      define_flags: defines flags whose definition reads the command line, so not at import.
      arguments: the largest number of arguments that are not flags.
      computes_long: large pages are worth a restart of the process (runtime/huge_pages.py).
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1 + arguments:
            hint = "; a working directory is given as --workdir=W" * ("workdir" in flags.FLAGS)
            raise UserError(
                f"unknown argument {argv[1 + arguments]!r}: options start with --{hint}; see --help"
            )
        logging.set_verbosity(logging.ERROR)  # Orbax logs every save, JAX every peer
        orbax_errors.silence()
        virtual_devices.make_room()
        processes.initialize_from_flags()
        compiled_programs.keep()
        main(argv)

    flags.DEFINE_bool("version", False, "Print the version, and stop.")
    if computes_long:
        huge_pages.restart()  # first: the new process starts in the environment of this one
    parse = functools.partial(_parse, define_flags=define_flags)
    doors.run(lambda: app.run(guarded, flags_parser=parse))


def require(**values: object) -> None:
    """Require values of flags.

    Raises:
      UserError: names the first one missing.
    """
    for name, value in values.items():
        if not value:
            raise UserError(f"--{name} is missing; see --help")


def one_workdir(argv: Sequence[str], flag: str) -> str:
    """The working directory of a command line, which may be given with its flag or without.

    Args:
      argv: the name of the program, and the arguments without a flag.
      flag: the value of --workdir; "" = not given.

    Raises:
      UserError: there is none, or there are two.
    """
    given = [*argv[1:], *filter(None, [flag])]
    require(workdir=given)
    if len(given) > 1:
        raise UserError(f"two working directories are given, {given[0]} and {given[1]}; give one")
    return given[0]


def define_device_flags() -> None:
    """Define the flags of `mesh_from_flags`."""
    flags.DEFINE_integer("fsdp", 1, "Devices that share parameters and rows.", 1)
    flags.DEFINE_integer("tensor", 1, "Devices that share heads and vocabulary.", 1)


def mesh_from_flags() -> Mesh:
    """The devices of this process that --fsdp and --tensor request for a loaded model."""
    from fqs_jax.runtime import accelerators, sharding

    accelerators.note_unused()
    return sharding.local_mesh(flags.FLAGS.fsdp, flags.FLAGS.tensor)


def command_line(module: str, **flags_by_name: object) -> str:
    """A command for a shell, without the flags that are empty."""
    words = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in flags_by_name.items()
        if value not in (None, "", False)
    ]
    return " ".join(["python -m", module, *map(quote, words)])


def quote(word: str) -> str:
    """A word for a shell, in one line, whatever characters it has.

    Control characters and bytes that are not UTF-8, as in a file's name, need the notation of bash.
    """
    if printable(word) == word:
        return shlex.quote(word)
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(word)
    )
    return f"$'{escaped}'"


def _parse(argv: list[str], define_flags: Callable[[], None]) -> list[str]:
    """Parse flags with absl; its errors have one line."""
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is an error here
    try:
        # In place, because config flags and `config_flag.overrides` read the same list.
        argv[1:] = _without_flag_files(argv[1:])
        config_flag.expand_file(argv)
        define_flags()
        rest = flags.FLAGS(argv)
        if "version" in flags.FLAGS and flags.FLAGS["version"].value:
            print(f"fqs_jax {__version__}")
            sys.exit()
        if "config" in flags.FLAGS:
            config_flag.check(flags.FLAGS)
        return rest
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        # Between them, a traceback.
        said = " ".join(dict.fromkeys((lines[0], lines[-1])))
        way = _way(argv)
        cause = said.partition(". Did you mean")[0] if way else _plain(said)
        raise UserError(cause + way) from error
    except SystemExit:  # of --help, for which absl ends with 1
        raise SystemExit(0) from None
    except UserError:
        raise
    except OSError as error:
        if error.errno is not None:  # not the library's, which wraps the error of a config
            raise
        raise UserError(config_flag.problem(error)) from error
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise UserError(config_flag.problem(error)) from error


def _plain(text: str) -> str:
    """An error of absl in plain words."""
    return re.sub(
        r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is not a whole number", text
    )


def _way(argv: list[str]) -> str:
    """A guess at an unknown flag: a field of the config, or the flag of another program."""
    for word in argv[1:]:
        name = re.match(r"--?(\w+)", word)
        if name is None or name[1] in flags.FLAGS:
            continue
        if name[1] == "workdir" and "checkpoint" in flags.FLAGS:
            return "; give a working directory as --checkpoint=W --stage=N"
        if "config" in flags.FLAGS and name[1] in (flags.FLAGS["config"].value or ()):
            return f"; a field of the config is written --config.{name[1]}=VALUE"
    return ""


def _without_flag_files(words: list[str]) -> list[str]:
    """A command line with the content of each --flagfile in its place."""
    for i, word in enumerate(words):
        if match := re.fullmatch(r"--?flagfile(?:=(.*))?", word, re.DOTALL):
            name = words[i + 1] if match[1] is None and i + 1 < len(words) else match[1]
            if name:
                inputs.read_text(paths.expand_local(name))  # refuses what is no text
    try:
        return flags.FLAGS.read_flags_from_files(words)
    except UnicodeDecodeError as error:
        raise UserError("a file that the file of --flagfile names is not UTF-8") from error
