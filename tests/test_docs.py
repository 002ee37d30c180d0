"""The documentation: every link leads somewhere, every page is in the site, and nothing in it is stale.

`make docs` builds the site and is stricter; this needs none of its libraries.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import yaml
from flax.traverse_util import flatten_dict

from configs import common
from fqs_jax.curriculum.stage import Stage
from tests.conftest import REPO

DOCS = REPO / "docs"
PAGES = [*REPO.glob("*.md"), *DOCS.glob("*.md")]
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def building(name: str) -> ModuleType:
    """A module of docs/building."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "building" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and the site give the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of a page."""
    text = page.read_text()
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or anchor and anchor not in anchors(file.read_text()):
            found.append(f"{page.name}: {target}")
    return found


def test_links_lead_somewhere():
    assert [link for page in PAGES for link in broken_links(page)] == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "b.md").write_text("# 1. A `b`: c\n\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[x](b.md#1-a-b-c) [y](c.md) [z](b.md#no-heading) [w](#d)\n\n# D\n\n`[v](gone.md)` [u](#e)"
    )
    assert broken_links(page) == ["a.md: c.md", "a.md: b.md#no-heading", "a.md: #e"]


def pages_of(nav: list[dict[str, object]]) -> list[str]:
    """The pages of a navigation, in order."""
    found: list[str] = []
    for entry in nav:
        for value in entry.values():
            found += [value] if isinstance(value, str) else pages_of(value)  # type: ignore[arg-type]
    return found


def test_every_page_is_in_the_site():
    listed = pages_of(yaml.safe_load((REPO / "mkdocs.yml").read_text())["nav"])
    assert len(listed) == len(set(listed))
    made = dict(building("hooks").made_pages())
    assert {page.name for page in DOCS.glob("*.md")} <= set(listed)
    assert {page for page in made if not page.startswith("configs/")} <= set(listed)
    assert all((DOCS / page).exists() or page in made for page in listed)
    wings = {path.parent.name for path in (REPO / "fqs_jax").glob("*/__init__.py")} - {"configs"}
    assert {f"reference/api/{wing}.md" for wing in wings} <= set(listed)


def test_links_of_made_pages_stay_in_the_site():
    text = "[a](docs/scale.md#plan) ![b](docs/p/c.svg) [d](configs/tiny.py) [e](https://x.y) [f](LICENSE)"
    expected = "[a](scale.md#plan) ![b](p/c.svg) [d](configs/tiny.md) [e](https://x.y) [f](LICENSE)"
    hooks = building("hooks")
    assert hooks.relink(text, "", "index.md") == expected
    up = "[a](../README.md) [b](../configs/common.py#x) [c](scale.md)"
    assert (
        hooks.relink(up, "docs", "data.md")
        == "[a](index.md) [b](reference/config.md#x) [c](scale.md)"
    )


def test_pictures_are_those_that_the_program_draws():
    pictures = building("pictures")
    for name, draw in pictures.PICTURES.items():
        assert (DOCS / "pictures" / name).read_text() == draw(), (
            "run python docs/building/pictures.py"
        )


def test_the_reference_has_every_field_with_its_default():
    reference = building("config_reference").page()
    shown = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", reference, re.MULTILINE))
    fields = flatten_dict(common.get_config().to_dict(), sep=".")
    for name, value in fields.items():
        if name.startswith("stage_"):
            continue
        task_field = name.rpartition(".")[2]
        if name.startswith("data.") and task_field in common.built_in():
            name = f"data.TASK.{task_field}"
        assert ast.literal_eval(shown[name]) == value, name
    listed = re.findall(r"^\| `([\w, ]+)` \|", reference[reference.index("## stage_N") :], re.M)
    assert ", ".join(listed).split(", ") == [field.name for field in dataclasses.fields(Stage)]


def test_the_reference_has_the_comments():
    reference = building("config_reference").page()
    assert "| `optimizer.clip_norm` | `1.0` | global norm of NLL and policy gradients" in reference
    assert "optional #KEY and @WEIGHT ([data](../data.md))" in reference
    assert "none \\| full \\| dots" in reference and "`objective`" in reference


def test_messages_on_the_troubleshooting_page_are_in_the_code():
    text = (DOCS / "troubleshooting.md").read_text()
    messages = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert len(messages) > 20
    constants = "\n".join(
        node.value
        for path in (REPO / "fqs_jax").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    for message in messages:
        for part in message.split("…"):
            assert part.strip(" ();,") in constants, f"{part!r} of {message!r}"
