"""The page of `fqs demo` in a browser, around reporting/live_page.py: controls, and a server on this machine.

Gradio is imported when the page is made: it is an extra, and slow to import.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from fqs_jax.inference import live, prompts
from fqs_jax.inference.live import LiveToken
from fqs_jax.inference.loaded import Loaded
from fqs_jax.reporting import live_models, live_page
from fqs_jax.reporting.live_models import LiveModel
from fqs_jax.reporting.live_page import Column
from fqs_jax.reporting.markup import escape
from fqs_jax.runs import loading
from fqs_jax.runtime.errors import UserError

STORY = "Once upon a time"
MOST_TOKENS = 256  # of a continuation
_AGAIN = 32  # tokens at the prompt's end that are shown with thoughts too
_TIMED = 16  # tokens behind an answer, by which the time of one is measured
_IN_MEMORY = 3  # models, which is what a comparison shows
_PAUSE = 0.1  # seconds between two pictures: drawing every token would slow the model down
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


def free_port(host: str, port: int) -> int:
    """The port itself if a server can have it; 0 = one that is free.

    Raises:
      UserError: another program has it, or the host is none of this machine.
    """
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise UserError(
            f"cannot serve on port {port} of {host} ({reason}); choose another with --port=N, or any "
            "free one with --port=0"
        ) from error


def library() -> Any:
    """The module gradio, which sends nothing about its use.

    Raises:
      UserError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"demo needs gradio ({error}): pip install 'fqs_jax[demo]'") from error
    return gradio


def serve(root: Path, gradio: Any, host: str, port: int, mesh: Mesh) -> str:
    """Serve the page of a folder's models from threads of this process; its address."""
    css = importlib.resources.files("fqs_jax.reporting").joinpath("live.css").read_text()
    theme = gradio.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"])
    _, address, _ = app(root, gradio, mesh).launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        ssr_mode=False,
        quiet=True,
        css=css,
        theme=theme,
        footer_links=[],
    )
    return str(address)


def app(root: Path, gradio: Any, mesh: Mesh) -> Any:
    """The page: one model, or several side by side."""
    found = live_models.models(root)
    load = functools.lru_cache(_IN_MEMORY)(lambda stage: loading.load(str(root), stage, mesh=mesh))
    task = live_models.task(root)
    answers = () if task is None else tuple(task.answers)
    problem = STORY if task is None else next(iter(task.problems("test")))[0]
    show = functools.partial(watch, load, {model.label: model for model in found}, answers)
    labels = [model.label for model in found]
    with gradio.Blocks(title=f"{root.resolve().name}: what it thinks") as blocks:
        gradio.HTML(f"<h1>{escape(root.resolve().name)}: what it thinks</h1>")
        prompt = gradio.Textbox(problem, label="Prompt", lines=2)
        at_once = gradio.Checkbox(
            bool(answers),
            label="Answer at once, by the likeliest of the answers",
            visible=bool(answers),
        )
        with gradio.Accordion("Settings", open=False):
            count = gradio.Slider(1, MOST_TOKENS, 24, step=1, label="New tokens at most")
            heat = gradio.Slider(0, 2, 0, step=0.05, label="Temperature; 0 = the likeliest token")
            seed = gradio.Number(0, label="Seed of sampling, thoughts included", precision=0)
        with gradio.Tab("Watch"):
            one = gradio.Dropdown(labels, value=live_models.first_shown(found).label, label="Model")
            _controls(
                gradio,
                show,
                [one, prompt, at_once, count, heat, seed],
                "Continue",
                live_page.LEGEND,
            )
        with gradio.Tab("Side by side"):
            default = [model.label for model in live_models.compared(found)]
            some = gradio.CheckboxGroup(labels, value=default, label="Models, one after the other")
            _controls(gradio, show, [some, prompt, at_once, count, heat, seed], "Compare", "")
    return blocks


def _controls(gradio: Any, show: Any, inputs: list[Any], action: str, legend: str) -> None:
    """Buttons that start and stop, and the place for what comes."""
    with gradio.Row():
        start = gradio.Button(action, variant="primary")
        stop = gradio.Button("Stop")
    shown = gradio.HTML(legend)
    # Of one kind with one at a time: two that ran together would be slower than they are.
    begun = start.click(
        show, inputs, shown, concurrency_id="device", concurrency_limit=1, show_progress="hidden"
    )
    stop.click(None, cancels=[begun])


def watch(
    load: Any,
    found: dict[str, LiveModel],
    answers: Sequence[str],
    labels: str | Sequence[str],
    prompt: str,
    at_once: bool,
    count: float,
    temperature: float,
    seed: float,
) -> Iterator[str]:
    """Pictures of growing continuations of one model, or of several that take turns."""
    chosen = [labels] if isinstance(labels, str) else list(labels)
    columns = [Column(label, (), "waits for its turn") for label in chosen]
    if not columns:
        yield live_page.note("choose a model")
    try:
        for place, label in enumerate(chosen):
            columns[place] = Column(label, (), "loads, reads the prompt, and may be compiled")
            yield live_page.side_by_side(prompt, columns)
            loaded: Loaded = load(found[label].stage)
            prompts.longest(loaded, [prompt])  # refuses what the model cannot read
            how: dict[str, Any] = {"seed": int(seed or 0)}
            if at_once and answers:
                token = list(live.answer(loaded, prompt, answers, **how))
                more = live.summary(list(live.continue_prompt(loaded, prompt, _TIMED, **how)))
                columns[place] = Column(label, token, "", more.ms_per_token)
                yield live_page.side_by_side(prompt, columns)
                continue
            new = min(int(count), MOST_TOKENS)  # whatever a browser sends
            how |= {"temperature": float(temperature), "again": _AGAIN}
            for some in now_and_then(live.continue_prompt(loaded, prompt, new, **how)):
                columns[place] = Column(label, some, "reads the prompt")
                yield live_page.side_by_side(prompt, columns)
    except UserError as error:
        yield live_page.note(str(error))


def now_and_then(tokens: Iterator[LiveToken], pause: float = _PAUSE) -> Iterator[list[LiveToken]]:
    """The tokens so far, first and last for sure, and between them not more often than the pause."""
    made: list[LiveToken] = []
    due = 0.0
    for token in tokens:
        made.append(token)
        if time.monotonic() >= due:
            yield made
            due = time.monotonic() + pause
    yield made
