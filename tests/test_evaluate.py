"""The evaluate program: which command it chooses, and that no flag is ignored."""

import ast
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPO

PROGRAM = REPO / "fqs_jax" / "evaluate.py"
COMMANDS = sorted((REPO / "fqs_jax" / "evaluation").glob("*_command.py"))


def defined(path: Path) -> set[str]:
    """Names of the flags that a file defines."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [call for call in calls if ast.unparse(call.func).startswith("flags.DEFINE_")]
    return {ast.literal_eval(call.args[0]) for call in made}


def shared(path: Path) -> set[str]:
    """The tuple SHARED of a command."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SHARED":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no SHARED")


def read(path: Path) -> set[str]:
    """Names of the flags whose values a file reads, as `f.name` or `flags.FLAGS.name`."""
    nodes = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
    ]
    return {node.attr for node in nodes if ast.unparse(node.value) in ("f", "flags.FLAGS")}


def test_a_command_reads_the_flags_that_it_declares_and_no_others():
    assert len(COMMANDS) == 4
    for_some = set().union(*map(shared, COMMANDS))
    for_all = defined(PROGRAM) - for_some
    for path in COMMANDS:
        declared = defined(path) | shared(path)
        choosing = {"watch", "task", "all_stages"}  # the program reads them
        assert declared - choosing <= read(path) <= declared | for_all, path


REFUSED = {
    "--greedy --text=x": "--greedy is for --task, not for the loss of one model; leave it out",
    "--all_stages --workdir=W --documents=9": "--documents is for --watch, not for --all_stages;",
    "--watch --task=csqa": "--watch and --task do not go together",
    "--all_stages --workdir=W --stage=1": "leave --stage and --checkpoint out",
    "--task=csqa --workdir=W": "--workdir is for --all_stages; add it, or give --checkpoint=W",
    "text.jsonl": "unknown argument 'text.jsonl'",
}
REFUSE = """
import sys
from absl import flags
from fqs_jax import evaluate
from fqs_jax.runtime.errors import UserError

for line in sys.argv[1:]:
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    try:
        evaluate.main(flags.FLAGS(["evaluate", *line.split()]))
    except UserError as error:
        print(error)
"""


def test_flags_of_another_command_are_refused():
    """All in one process, since each takes seconds to start."""
    command = [sys.executable, "-c", REFUSE, *REFUSED]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    for line, (options, reason) in zip(done.stdout.splitlines(), REFUSED.items(), strict=True):
        assert reason in line, options
