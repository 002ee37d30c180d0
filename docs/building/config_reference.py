"""The reference of all config fields, generated from configs/common.py and curriculum/stage.py.

Only the text of the files is read: defaults are shown as they are written, and the meaning of a field is the
comment beside or above it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[2]
COMMON, STAGE = REPO / "configs" / "common.py", REPO / "fqs_jax" / "curriculum" / "stage.py"

_INTRODUCTION = """# Config reference

<!-- Generated from configs/common.py and fqs_jax/curriculum/stage.py; change those. -->

An experiment is a Python file with `get_config()`, such as [tiny](../configs/tiny.md). Any field can be
changed on the command line: `--config.optimizer.clip_norm=0.5 --config.stage_2.steps=30`. The defaults are
the published recipe; values marked (released) are set in the released Fast Quiet-STaR scripts. A field in an
experiment is `c.NAME`, where `c` is the config. What the objectives compute is in [fidelity](../fidelity.md).
"""


class Field(NamedTuple):
    """A field of the config; `value` is Python source, `meaning` its comment."""

    name: str
    value: str
    meaning: str


class Section(NamedTuple):
    """Fields with one prefix, such as `optimizer`; the one of fields at the top has the name ""."""

    name: str
    meaning: str
    fields: list[Field]


def page() -> str:
    """The whole reference as Markdown."""
    source = COMMON.read_text(encoding="utf-8")
    sections = read_sections(source, "get_config")
    [tasks] = read_sections(source, "built_in")
    [_, *rest] = sections
    parts = [_INTRODUCTION, "## Top level\n", _table(sections[0].fields)]
    for section in rest:
        parts += [f"## {section.name}\n", section.meaning and f"{section.meaning}\n"]
        parts.append(_table(section.fields))
        if section.name == "data":
            parts += [
                "## data.TASK\n",
                "Of every built-in task: `data.clock`, `data.chain` and so on. "
                "The fields that only one task has are above.\n",
                _table([field._replace(name=f"data.TASK.{field.name}") for field in tasks.fields]),
            ]
    parts += ["## stage_N\n", *_stages(source)]
    return "\n".join(part for part in parts if part)


def read_sections(source: str, function: str) -> list[Section]:
    """The sections of the config that a function of a file makes, in the order of the file.

    Args:
      source: text of the file; the function assigns fields of a variable `c`.
    """
    lines = source.splitlines()
    [body] = [
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    sections = {"": Section("", "", [])}
    for node in body:
        name = _assigned(node)
        if name is None or name.startswith("stage_"):
            continue
        assert isinstance(node, ast.Assign) and node.end_lineno  # `_assigned` found its name
        value = ast.get_source_segment(source, node.value) or ""
        meaning = _comment(lines, node.lineno, node.end_lineno)
        if value in ("ml_collections.ConfigDict()", "built_in()") and "." not in name:
            sections[name] = Section(name, meaning, [])
            continue
        if value in ("ml_collections.ConfigDict()", "built_in()"):
            continue  # a part of a section, whose fields follow
        head = name.split(".")[0] if "." in name else ""
        sections[head].fields.append(Field(name, value, meaning))
    return list(sections.values())


def _assigned(node: ast.stmt) -> str | None:
    """The name of the field that a statement sets, such as `data.text`; None if it sets none."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
        return None
    name = ast.unparse(node.targets[0])
    return name.removeprefix("c.") if name.startswith("c.") else None


def _comment(lines: list[str], first: int, last: int) -> str:
    """The comment above a statement and the one at its end, as one text.

    Args:
      first, last: numbers of its lines, from 1.
    """
    above = []
    for line in reversed(lines[: first - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().removeprefix("#").strip())
    end = lines[last - 1]
    beside = re.search(r"  # (.*)$", end)
    return " ".join([*above, *([beside[1]] if beside else [])])


def _table(fields: list[Field]) -> str:
    rows = [
        f"| `{field.name}` | `{field.value}` | {_as_markdown(field.meaning)} |" for field in fields
    ]
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *rows, ""])


def _as_markdown(text: str) -> str:
    """A comment as the text of a cell: alternatives with |, pages of this site linked."""
    text = text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", text)


def _stages(source: str) -> Iterator[str]:
    """The fields of a row, and the rows of the published recipe."""
    yield (
        "A row of the curriculum is a field `stage_N`: `--stage=2` runs one row, `--stage=..2` all up to it, "
        "`--stage=all` all in order. `row(NAME, OBJECTIVE, ...)` makes one with these fields:\n"
    )
    yield "| field | meaning |\n|---|---|"
    for name, meaning in _attributes(STAGE.read_text(encoding="utf-8")):
        yield f"| `{name}` | {_as_markdown(meaning)} |"
    yield "\nThe published recipe:\n\n```python"
    function = source[source.index("def get_config") :]
    rows = function[function.index("    c.stage_1 =") : function.index("    return c")]
    yield "\n".join(line.removeprefix("    ") for line in rows.rstrip().splitlines())
    yield "```\n"


def _attributes(source: str) -> Iterator[tuple[str, str]]:
    """Names and meanings under "Attributes:" in the docstring of the class Stage."""
    [stage] = [node for node in ast.parse(source).body if getattr(node, "name", "") == "Stage"]
    text = (ast.get_docstring(stage) or "").partition("Attributes:\n")[2]  # type: ignore[arg-type]
    for entry in re.split(r"\n(?=  \w)", text.rstrip()):
        names, _, meaning = entry.strip().partition(": ")
        yield names, " ".join(meaning.split())
