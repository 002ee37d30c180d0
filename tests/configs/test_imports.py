"""Configs as files of an installed package, which has no module `configs`."""

import ast

import pytest

from tests.conftest import REPO

FILES = sorted((REPO / "configs").rglob("*.py"))


def top_level_imports(text: str) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").split(".")[0])
    return found


def test_the_package_has_the_folder_of_the_repository():
    """One copy: the folder in the package is a link to it."""
    assert (REPO / "fqs_jax" / "configs").resolve() == REPO / "configs"
    assert (REPO / "fqs_jax" / "configs").is_symlink()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_configs_import_each_other_from_the_package(file):
    """`configs` exists only in a clone, and a file that is read by its path has no relative imports."""
    assert not top_level_imports(file.read_text()) & {"configs", "."}


def test_both_wrong_imports_would_be_found():
    assert top_level_imports("def f():\n    from configs import tiny") == {"configs"}
    assert top_level_imports("from . import tiny\nimport configs.tiny") == {".", "configs"}
