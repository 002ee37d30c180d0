"""docs/notebook.ipynb: it runs as a plain script, and is committed without outputs."""

import json
import subprocess
from typing import Any

import pytest

from tests.conftest import REPO
from tests.tiny_runs import run

NOTEBOOK = json.loads((REPO / "docs" / "notebook.ipynb").read_text())
CODE = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]
SHORT = ("--max_steps=2", "--config.batch_size=4", "--config.data.num_documents=300")


def test_it_is_committed_without_outputs():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5 and len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(
        NOTEBOOK["cells"]
    )
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch, capsys):
    """With fewer steps, and without a network; `evaluate` is in tests/test_demo.py."""
    programs: list[str] = []

    def start(words: list[str], check: bool) -> None:
        assert words[1:3] == ["-m", "fqs_jax"] and check
        name, *flags = words[3:]
        programs.append(name)
        paths = [flag.replace("workdir/", f"{tmp_path}/workdir/") for flag in flags]
        if name != "evaluate":
            run(name, *paths, *(SHORT if name == "launch" else ()))

    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for source in CODE:
        source = source.replace("thoughts(WORKDIR", "thoughts(WORKDIR, tokens=12, samples=1")
        exec(compile(source, "notebook", "exec"), names)
    assert programs == ["launch", "inspect", "evaluate"]
    assert names["CHECKPOINT"] == "" and names["shown"] is None
    assert "Skipped: no checkpoint can be downloaded" in capsys.readouterr().out
    assert len(names["result"].thoughts) == 2
    page, shown = names["frame"].page, names["frame"]._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and "data-thoughts" in page
    assert "<script>" in page and "<script>" not in shown  # escaped, inside of the frame
