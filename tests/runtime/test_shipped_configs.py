"""Configs that come with the package are found by name, wherever a program is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from fqs_jax.runtime import config_flag, shipped_configs
from fqs_jax.runtime.errors import UserError
from tests.conftest import REPO


def test_the_names_are_the_files_of_the_repository() -> None:
    files = {str(path.relative_to(REPO / "configs"))[:-3] for path in REPO.glob("configs/**/*.py")}
    assert set(shipped_configs.names()) == files - {"__init__", "common", "sweeps/__init__"}


@pytest.mark.parametrize("given", ["tiny", "configs/tiny.py", "mistral_7b", "sweeps/default"])
def test_a_name_is_found_in_any_folder(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()  # a working directory, say
    name = given.removeprefix("configs/").removesuffix(".py")
    found = shipped_configs.locate(given)
    assert Path(found).samefile(REPO / "configs" / f"{name}.py")
    assert shipped_configs.shorten(found) == name
    assert config_flag.locate(f"{given}:argument") == f"{found}:argument"


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for given in ("configs/tiny.py", "mine.py"):
        (tmp_path / given).touch()
        assert shipped_configs.locate(given) == shipped_configs.shorten(given) == given
    assert shipped_configs.locate("configs/none.py") == "configs/none.py"  # refused when it is read


@pytest.mark.parametrize(
    "given, meant",
    [("mistral7b", "did you mean mistral_7b"), ("sweeps/defualt", "did you mean sweeps/default")],
)
def test_an_unknown_name_is_refused_with_those_there_are(given: str, meant: str) -> None:
    with pytest.raises(UserError, match=meant) as refused:
        shipped_configs.locate(given)
    line = str(refused.value)
    assert repr(given) in line and "\n" not in line
    assert all(name in line for name in shipped_configs.names())


def test_a_name_like_no_other_has_no_suggestion() -> None:
    with pytest.raises(UserError, match="no config 'zzzzzz'; give the path"):
        shipped_configs.locate("zzzzzz")
