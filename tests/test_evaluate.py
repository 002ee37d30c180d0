"""The evaluate program: which command it chooses, and that no flag is ignored."""

import ast
import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPO

COMMANDS = sorted((REPO / "fqs_jax" / "evaluation").glob("*_command.py"))


def read(path: Path) -> set[str]:
    """Names of the flags whose values a file reads, as `f.name` or `flags.FLAGS.name`."""
    nodes = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
    ]
    return {node.attr for node in nodes if ast.unparse(node.value) in ("f", "flags.FLAGS")}


DECLARED = """
import json
from absl import flags
from fqs_jax import evaluate

used = {evaluate._MODULES[name]: sorted(flags) for name, flags in evaluate._USED.items()}
every = [flag.name for flag in flags.FLAGS.get_flags_for_module("fqs_jax.evaluate")]
print(json.dumps([used, every]))
"""


def test_a_command_reads_the_flags_that_it_declares_and_no_others():
    command = [sys.executable, "-c", DECLARED]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    used, every = json.loads(done.stdout)
    assert sorted(used) == [path.stem for path in COMMANDS] and len(COMMANDS) == 4
    for_all = set(every).difference(*used.values())
    for path in COMMANDS:
        declared = set(used[path.stem])
        choosing = {"watch", "task", "all_stages"}  # the program reads them
        assert declared - choosing <= read(path) <= declared | for_all, path


REFUSED = {
    "--greedy --text=x": "--greedy is for --task, not for the loss of one model; leave it out",
    "--all_stages --workdir=W --documents=9": "--documents is for --watch, not for --all_stages;",
    "--watch --task=csqa": "--watch and --task do not go together",
    "--all_stages --workdir=W --stage=1": "leave --stage and --checkpoint out",
    "--task=csqa --workdir=W": "--workdir is for --all_stages; add it, or give --checkpoint=W",
    "text.jsonl": "unknown argument 'text.jsonl'",
    "--watch --text=a.jsonl b.jsonl": "the text is given twice, as 'b.jsonl' and --text",
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
