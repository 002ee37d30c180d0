"""The structure of the package: imports only go down between wings, and never in a circle.

Every check is a function of a folder, so that small planted packages show each of them failing.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import REPO

PACKAGE = REPO / "fqs_jax"
# From the ground up. A wing may import itself and the wings of earlier levels; programs come last.
LEVELS = (
    ("runtime",),
    ("data", "model"),
    ("huggingface", "thinking"),
    ("objectives", "inference", "gguf_files"),
    ("curriculum",),
    ("runs",),
    ("training", "evaluation"),
    ("reporting", "sweeps", "planning"),
    (
        "configs",
    ),  # a link to the folder of the experiments, which import their helpers from fqs_jax
)
MAX_LINES = 350


def read_modules(package: Path) -> dict[str, Path]:
    """The files of a package by the name they are imported by."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def read_imports(package: Path) -> dict[str, set[str]]:
    """The modules of a package that each of its modules imports, anywhere in the file.

    Imports in functions and under TYPE_CHECKING count like those at the top.
    """
    modules = read_modules(package)
    return {
        name: {
            module
            for node in ast.walk(ast.parse(path.read_text()))
            for module in _named(node, name, modules)
        }
        for name, path in modules.items()
    }


def _named(node: ast.AST, importer: str, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that an import statement names; none for any other node."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in modules}
    if not isinstance(node, ast.ImportFrom):
        return set()
    base = node.module or ""
    if node.level:
        is_package = modules[importer].name == "__init__.py"
        parents = importer.split(".")
        parents = parents[: len(parents) - node.level + is_package]
        base = ".".join([*parents, *filter(None, [node.module])])
    if base not in modules:
        return set()
    # `from a import b` reads the module a.b where it exists, otherwise the name b of the module a.
    names = {f"{base}.{alias.name}" for alias in node.names}
    return {name if name in modules else base for name in names}


def find_level(module: str) -> int:
    """The level of a module's wing, -1 for the package's own `__init__`, one above all wings for programs."""
    if "." not in module:
        return -1
    wing = module.split(".")[1]
    levels = [level for level, wings in enumerate(LEVELS) if wing in wings]
    return levels[0] if levels else len(LEVELS)


def find_upward_imports(package: Path) -> list[str]:
    """Imports of another wing that is not below: "importer -> imported"."""
    return [
        f"{importer} -> {imported}"
        for importer, all_imported in read_imports(package).items()
        for imported in sorted(all_imported)
        if importer.split(".")[:2] != imported.split(".")[:2]
        and find_level(imported) >= find_level(importer)
    ]


def find_circle(package: Path) -> list[str]:
    """The modules of one import circle; empty if there is none.

    A module is imported after the `__init__` of every package around it, so an import of
    `a.b.c` from outside `a.b` imports `a.b` too.
    """
    graph: dict[str, set[str]] = {}
    for importer, all_imported in read_imports(package).items():
        graph[importer] = set(all_imported)
        for imported in all_imported:
            parts = imported.split(".")
            parents = {".".join(parts[:n]) for n in range(1, len(parts))}
            graph[importer] |= {p for p in parents if not f"{importer}.".startswith(f"{p}.")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def find_misplaced_files(package: Path) -> list[str]:
    """Files at the top that are no programs, and folders at the top that are no wings."""
    wings = {wing for wings in LEVELS for wing in wings}
    folders = {path.parent.relative_to(package).parts[0] for path in package.glob("*/**/*.py")}
    return sorted(
        path.name
        for path in package.glob("*.py")
        if path.name != "__init__.py" and '__name__ == "__main__"' not in path.read_text()
    ) + sorted(folders - wings)


def find_long_files(package: Path) -> list[str]:
    lengths = {path: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    return [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES]


def find_unmirrored_folders(package: Path, tests: Path) -> list[str]:
    """Wings without a folder of tests, and folders of tests that are none of the package or repository."""
    wings = {path.parent.name for path in package.glob("*/__init__.py")}
    tested = {path.parent.relative_to(tests) for path in tests.glob("*/**/test_*.py")}
    untested = wings - {folder.parts[0] for folder in tested}
    roots = (package, package.parent)
    unknown = {
        str(folder) for folder in tested if not any((root / folder).is_dir() for root in roots)
    }
    return sorted(untested | unknown)


def find_unknown_paths(repository: Path, texts: Iterable[Path]) -> list[str]:
    """Python files that a text names and the repository lacks: "text: name".

    A name may be the end of a path, such as `thinking/flops.py`. Placeholders in capitals, and files that a
    guide calls a "new file", are left out.
    """
    folders = ("benchmarks", "configs", "docs", "fqs_jax", "launch", "tests")
    known = [f"/{path}" for folder in folders for path in (repository / folder).rglob("*.py")]
    named = {
        f"{path}: {name}"
        for path in texts
        for name in re.findall(r"\w[\w/]*\.py\b", re.sub(r"new file, `\S+`", "", path.read_text()))
        if not Path(name).stem.isupper() and not any(k.endswith(f"/{name}") for k in known)
    }
    return sorted(named)


def test_imports_between_wings_go_down():
    assert find_upward_imports(PACKAGE) == []


def test_files_do_not_import_each_other_in_a_circle():
    assert find_circle(PACKAGE) == []


def test_the_top_of_the_package_has_only_programs():
    assert find_misplaced_files(PACKAGE) == []


def test_no_file_is_long():
    assert find_long_files(PACKAGE) == []


def test_tests_mirror_the_package():
    assert find_unmirrored_folders(PACKAGE, REPO / "tests") == []


def test_files_that_are_named_exist():
    folders = [REPO / name for name in ("benchmarks", "configs", "docs", "fqs_jax", "launch")]
    texts = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".py", ".md", ".sh")
    ]
    pages = [REPO / "README.md", REPO / "CONTRIBUTING.md"]
    assert find_unknown_paths(REPO, [*texts, *pages]) == []


def test_python_examples_in_the_documentation_can_be_imported():
    pages = [REPO / "README.md", *(REPO / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    examples = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = [
        (node.module, alias.name)
        for example in examples
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fqs_jax")
        for alias in node.names
    ]
    assert len(names) >= 3
    for module, name in names:
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")  # raises unless it is a module of a package


def test_the_architecture_page_lists_every_wing_from_the_ground_up():
    text = (REPO / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\| (\d+) \| `(\w+)/` \|", text, re.MULTILINE)
    wings = [(str(number), wing) for number, wings in enumerate(LEVELS, 1) for wing in wings]
    assert listed == wings


def test_files_and_names_on_the_architecture_page_exist():
    text = (REPO / "docs" / "architecture.md").read_text()
    wings = "|".join(wing for level in LEVELS for wing in level if wing != "configs")
    named = re.findall(rf"(?<![\w/])((?:{wings})/\w+(?:/\w+)*)(?:\.(\w+))?", text)
    assert len(named) > 20
    for path, name in named:
        file = PACKAGE / f"{path}.py"
        assert file.is_file() or (PACKAGE / path).is_dir() and not name, path
        if name:
            defined = {getattr(node, "name", "") for node in ast.parse(file.read_text()).body}
            assert name in defined, f"{path}.{name}"


# The checks themselves --------------------


def plant(folder: Path, files: dict[str, str]) -> Path:
    """A package with the given files, and an empty `__init__.py` wherever one is missing."""
    package = folder / "planted"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (path / "__init__.py").touch()
    return package


@pytest.mark.parametrize(
    "statement",
    [
        "import planted.model.decoder",
        "import planted.model.decoder as decoder",
        "from planted.model import decoder",
        "from planted.model.decoder import forward",
        "from ...model import decoder",
        "from ...model.decoder import forward as f",
        "def load():\n    from planted.model import decoder",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from planted.model import decoder",
    ],
)
def test_a_planted_upward_import_is_found(tmp_path, statement):
    files = {
        "runtime/inner/files.py": statement,
        "model/decoder.py": "import planted\nfrom planted.runtime.inner import files\n",
    }
    found = find_upward_imports(plant(tmp_path, files))
    assert found == ["planted.runtime.inner.files -> planted.model.decoder"]


def test_wings_of_one_level_and_programs_do_not_import_each_other(tmp_path):
    files = {
        "training/loop.py": "from planted.evaluation import text",
        "evaluation/text.py": "from planted.evaluation import statistics",
        "evaluation/statistics.py": "",
        "launch.py": "import planted.training.loop, planted.evaluate",
        "evaluate.py": "",
    }
    assert find_upward_imports(plant(tmp_path, files)) == [
        "planted.launch -> planted.evaluate",
        "planted.training.loop -> planted.evaluation.text",
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from planted.data import second", "from planted.data import first"),
        ("def load():\n    from . import second", "from planted.data.first import load"),
        ("import planted.data.second", "from planted.data import first"),
    ],
)
def test_a_planted_circle_is_found(tmp_path, first, second):
    package = plant(tmp_path, {"data/first.py": first, "data/second.py": second})
    assert set(find_circle(package)) == {"planted.data.first", "planted.data.second"}
    (package / "data" / "second.py").write_text("")
    assert find_circle(package) == []


def test_a_planted_circle_through_an_init_file_is_found(tmp_path):
    """`data` imports its module `rows`, which reads a name of `runtime`, which imports `data.tables`."""
    files = {
        "data/__init__.py": "from planted.data.rows import order",
        "data/rows.py": "from planted.runtime import PATH\norder = 0",
        "data/tables.py": "",
        "runtime/__init__.py": "from planted.data import tables\nPATH = ''",
    }
    package = plant(tmp_path, files)
    assert set(find_circle(package)) == {"planted.data", "planted.data.rows", "planted.runtime"}
    (package / "data" / "__init__.py").write_text("")
    assert find_circle(package) == []


def test_misplaced_long_and_unmirrored_files_are_found(tmp_path):
    program = 'if __name__ == "__main__":\n    print()\n'
    files = {
        "launch.py": program,
        "helper.py": "",
        "data/long.py": "\n" * (MAX_LINES + 1),
        "data/short.py": "\n" * MAX_LINES,
        "data/rows/order.py": "",
        "model/decoder.py": "",
        "corner/file.py": "",
    }
    package = plant(tmp_path, files)
    tests = tmp_path / "tests"
    for name in ("test_launch.py", "data/rows/test_order.py", "data/gone/test_gone.py"):
        (tests / name).parent.mkdir(parents=True, exist_ok=True)
        (tests / name).touch()
    assert find_misplaced_files(package) == ["helper.py", "corner"]
    assert find_long_files(package) == [f"{package / 'data/long.py'}: {MAX_LINES + 1} lines"]
    assert find_unmirrored_folders(package, tests) == ["corner", "data/gone", "model"]


def test_a_named_file_that_does_not_exist_is_found(tmp_path):
    text = tmp_path / "page.md"
    text.write_text(
        "See `rows/order.py`, [order](../fqs_jax/data/rows/order.py), "
        "order.py, configs/NAME.py, order.pyi, a new file, `fqs_jax/new.py`."
    )
    file = tmp_path / "fqs_jax" / "data" / "rows" / "order.py"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_unknown_paths(tmp_path, [text]) == []
    text.write_text("See `fqs_jax/order.py` and border.py.")
    assert find_unknown_paths(tmp_path, [text]) == [
        f"{text}: border.py",
        f"{text}: fqs_jax/order.py",
    ]
