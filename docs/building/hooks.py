"""Hooks of the documentation site: pages that are made at each build, and links to other files.

Made are the home page (README.md), other pages of the repository's root, the config reference, a page
for each experiment, and the API reference, so none of them can be stale.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import config_reference

REPO = Path(__file__).resolve().parents[2]
REFERENCE = "reference/config.md"
# Pages of the root by the name that they have in the site. README is the home page.
ROOT = {
    "README.md": "index.md",
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
PAGES = ROOT | {"configs/common.py": REFERENCE}
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")  # of Markdown, to a file


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File  # the tests import this file without mkdocs

    for name, text in made_pages():
        files.append(File.generated(config, name, content=text))
    return files


def made_pages() -> Iterator[tuple[str, str]]:
    """Name in the site and Markdown of every page that is made."""
    for name, page in ROOT.items():
        text = (REPO / name).read_text(encoding="utf-8")
        yield page, relink(text, "", page)
    yield REFERENCE, config_reference.page()
    for path in sorted((REPO / "configs").rglob("*.py")):
        name = path.relative_to(REPO).as_posix()
        if path.name != "__init__.py" and name not in PAGES:
            yield site_page(name) or "", _source_page(path)
    for wing in wings():
        yield f"reference/api/{wing}.md", api_page(wing)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links out of the folder docs lead to pages of the site."""
    name = page.file.src_uri
    if name in ROOT.values() or name.startswith(("reference/", "configs/")):
        return markdown
    return relink(markdown, "docs", name)


def relink(markdown: str, folder: str, page: str) -> str:
    """Markdown whose links to files of the repository are links between pages of the site.

    Args:
      folder: where the text is in the repository, "" for its root.
      page: the name of the text's page in the site.
    """

    def target(found: re.Match[str]) -> str:
        base = posixpath.join(folder, posixpath.dirname(page)) if folder else ""
        path = posixpath.normpath(posixpath.join(base, found[2]))
        to = site_page(path)
        if to is None:
            return found[0]
        link = posixpath.relpath(to, posixpath.dirname(page) or ".")
        return f"{found[1]}{link}{found[3]}"

    return _LINK.sub(target, markdown)


def site_page(path: str) -> str | None:
    """The page of the site for a file of the repository; None if it has none."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("configs/") and path.endswith(".py"):
        return path.removesuffix(".py") + ".md"
    return None


def _source_page(path: Path) -> str:
    """A page with the source of an experiment or a sweep."""
    name = path.relative_to(REPO / "configs").with_suffix("").as_posix()
    source = path.read_text(encoding="utf-8")
    return f"# {name}\n\n`--config={name}`\n\n````python\n{source}````\n"


def wings() -> list[str]:
    """The subpackages of the package that are part of the API, from the ground up."""
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| \d+ \| `(\w+)/` \|", text, re.MULTILINE)
    return [wing for wing in found if wing != "configs"]


def api_page(wing: str) -> str:
    """The page of a subpackage: mkdocstrings fills in the docstrings of its modules."""
    package = REPO / "fqs_jax" / wing
    modules = [f"fqs_jax.{wing}"]
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(REPO).with_suffix("").parts
        if path.name != "__init__.py":
            modules.append(".".join(parts))
    entries = "\n\n".join(f"::: {module}" for module in modules)
    return f"# fqs_jax.{wing}\n\n{entries}\n"
