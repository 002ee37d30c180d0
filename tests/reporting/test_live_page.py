"""The page of `fqs demo`, without a browser and without a model."""

from __future__ import annotations

import re
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fqs_jax.inference import live, prompts
from fqs_jax.inference.live import LiveToken
from fqs_jax.reporting import live_app, live_models, live_page
from fqs_jax.reporting.live_models import LiveModel
from fqs_jax.reporting.live_page import Column
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, refusal, save_stage

TOKEN = LiveToken(" <b>", "a\n", weight=0.5, probability=0.25, gain=0.8, seconds=0.004)
MODELS = [
    LiveModel("0", "stage 0 (base)", "base"),
    LiveModel("1", "stage 1 (13)", "thinking"),
    LiveModel("2", "stage 2 (5)", "thinking"),
    LiveModel("3", "stage 3 (distilled)", "student"),
    LiveModel("4", "stage 4 (ntp)", "student"),
    LiveModel("5", "stage 5 (plain)", "control"),
]


def test_a_card_has_all_that_is_known_of_a_token() -> None:
    given = TOKEN._replace(is_given=True, gain=-2.0)
    end = TOKEN._replace(text="", is_end=True, thought=None)
    html = live_page.continuation("<i>", Column("m&m", [given, TOKEN, TOKEN, end]))
    cards = re.findall(r'<div class="card (.*?)">(.*?)</div>', html)
    assert [css.split() for css, _ in cards] == [["given", "n4"], ["p3"], ["p3"], ["p3"]]
    numbers = "<span>p 0.25 w 0.50 <em>+0.80</em></span>"
    assert cards[1][1] == f"<b> &lt;b&gt;</b><i>a\u21b5</i>{numbers}"
    assert cards[3][1] == '<b class="soft">end of text</b><span>p 0.25</span>'
    assert "<h3>m&amp;m</h3>" in html and '<span class="soft">&lt;i&gt;</span>' in html
    assert "2 tokens \u00b7 <b>4 ms/token</b> \u00b7 weight 0.50 \u00b7 gain +0.800" in html


def test_models_that_are_shown_first() -> None:
    assert [model.stage for model in live_models.compared(MODELS)] == ["0", "2", "3"]
    assert live_models.first_shown(MODELS).stage == "2"
    assert (
        live_models.compared(MODELS[5:]) == [] and live_models.first_shown(MODELS[5:]).stage == "5"
    )


def test_models_and_task_of_a_folder(tmp_path: Any) -> None:
    root = tmp_path / "W"
    for number in (1, 3):
        save_stage(root, clock_config(), number)
    expected = [("1", "stage 1 (think-5-2)", "thinking"), ("3", "stage 3 (ntp)", "student")]
    assert [tuple(model) for model in live_models.models(root)] == expected
    task = live_models.task(root)
    assert task is not None and len(task.answers) == 7


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pictures of two tokens of each model, or of an answer; loading one of them fails."""

    def load(stage: str) -> Any:
        if stage == "2":
            raise UserError("it is <damaged>")
        return SimpleNamespace(stage=stage)

    def tokens(loaded: Any, prompt: str, *_: Any, **__: Any) -> Any:
        return iter([TOKEN._replace(text=f"{loaded.stage}{i}") for i in range(2)])

    monkeypatch.setattr(prompts, "longest", lambda loaded, _: 1)
    monkeypatch.setattr(live, "continue_prompt", tokens)
    monkeypatch.setattr(live, "answer", lambda *a, **how: iter([*tokens(*a)][:1]))
    found = {model.label: model for model in MODELS}

    def pictures(labels: Any, at_once: bool = False) -> list[str]:
        given = (labels, "Once", at_once, 2, 0, 0)
        return list(live_app.watch(load, found, ("1", "2"), *given))

    return pictures


def test_models_take_turns(watched: Any) -> None:
    *_, last = watched(["stage 0 (base)", "stage 3 (distilled)"])
    assert [last.count(f"<b>{text}</b>") for text in ("00", "01", "30", "31")] == [1, 1, 1, 1]
    first = watched("stage 0 (base)")[0]
    assert "loads" in first and "ms/token" not in first
    [column] = re.findall("<section.*?</section>", watched("stage 0 (base)", at_once=True)[-1])
    assert column.count('class="card ') == 1 and "4 ms/token" in column


def test_faults_are_a_line_on_the_page(watched: Any) -> None:
    assert watched("stage 2 (5)")[-1] == live_page.note("it is <damaged>")
    assert "&lt;damaged&gt;" in live_page.note("it is <damaged>")
    assert watched([]) == [live_page.note("choose a model")]


def test_not_every_token_is_drawn() -> None:
    drawn = list(live_app.now_and_then(iter([TOKEN] * 100), pause=60))
    assert len(drawn) == 2 and len(drawn[-1]) == 100


def test_what_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no folder" in refusal("demo", tmp_path / "W")
    (tmp_path / "empty").mkdir()
    assert "is no Hugging Face folder: it has no config.json" in refusal("demo", tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'fqs_jax\[demo\]'"):
        live_app.library()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve on port {port} .*--port=0"):
            live_app.free_port("127.0.0.1", port)
    assert live_app.free_port("127.0.0.1", 0) > 0
