"""Commands in the documentation: their programs, flags and fields of the config exist.

The table of the README has the recorded numbers.
"""

import re
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

from configs import common
from fqs_jax.__main__ import PROGRAMS
from tests.conftest import REPO
from tests.tiny_runs import run

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:python -m fqs_jax\.|fqs )(\w+)((?:[ \t]|\\\n|$).*)")


def commands(page: Path) -> list[tuple[str, str]]:
    """Name and arguments of every command of the package in the code blocks of a page."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line.strip() for line in text.splitlines() if line.startswith("    ")]
    found = (COMMAND.match(line.partition(" # ")[0]) for line in lines)
    return [(match[1], match[2]) for match in found if match]


EVERY = [(page.name, *command) for page in PAGES for command in commands(page)]


def test_commands_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "    fqs launch --a=1 \\\n        --b  # why\n\n```\npython -m fqs_jax.plan\n```\nfqs x\n"
    )
    found = [(name, arguments.split()) for name, arguments in commands(page)]
    assert sorted(found) == [("launch", ["--a=1", "--b"]), ("plan", [])]
    assert len(EVERY) > 60 and {name for _, name, _ in EVERY} <= set(PROGRAMS)


@pytest.mark.parametrize("program", sorted(set(PROGRAMS) - {"lm_eval_adapter"}))
def test_flags_exist(program):
    known = set(re.findall(r"^  --(?:\[no\])?(\w+)", run(program, "--helpfull").stdout, re.M))
    for page, name, arguments in EVERY:
        used = re.findall(r"(?<!\S)--(\w+)", arguments)
        if name == program:
            assert set(used) <= known, f"{page}: fqs {name}{arguments}"


def test_fields_of_the_config_exist():
    fields = set(flatten_dict(common.get_config().to_dict(), sep="."))
    for page in PAGES:
        if page.name == "sweeps.md":  # whose configs are sweeps
            continue
        for name in re.findall(r"--config\.([a-z][\w.]+)=", page.read_text()):
            assert re.sub(r"stage_\d", "stage_1", name) in fields, f"{page.name}: {name}"


def test_the_table_of_the_readme_is_the_recorded_one():
    def rows(page: Path, first: int, last: int) -> list[list[str]]:
        lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
        cells = [line.split("|") for line in lines if " ± 0" in line]
        return [[cell.strip() for cell in row[first:last]] for row in cells]

    recorded = rows(REPO / "docs" / "science" / "default.md", 2, 7)
    assert len(recorded) == 7 and rows(REPO / "README.md", 1, 6) == recorded
