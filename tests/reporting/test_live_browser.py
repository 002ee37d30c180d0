"""`fqs demo` in a real browser: it answers, it fits, nothing goes wrong, and no request leaves this machine.

Needs gradio (the extra `demo`), playwright and a Chromium (tests/browsers.py).
"""

import importlib.util
import re
import signal

import pytest

from tests.browsers import SIZES, browser  # noqa: F401  a fixture
from tests.programs import ended
from tests.tiny_runs import clock_config, save_stage, start

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="gradio is not installed"),
]
HOSTILE = "${1+1} {{2}} <img src=x onerror=console.error(1)>"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of a working directory with a base, a thinking stage and its student."""
    root = tmp_path_factory.mktemp("live") / "W"
    for number in (0, 1, 3):
        save_stage(root, clock_config(), number, seed=number)
    program = start("demo", root, "--port=0")
    with ended(program):
        line = program.stdout.readline()
        yield re.fullmatch(rf"{re.escape(str(root))} is at (\S+) \(Ctrl-C stops\)\n", line)[1]
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 130
        assert program.stderr.read() == "stopped\n"


@pytest.mark.parametrize("size", SIZES)
def test_the_page(size, browser, address):  # noqa: F811
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(address)
    cards = page.locator(".card:visible")

    page.get_by_role("button", name="Continue").click()  # a problem, answered at once
    cards.first.wait_for(timeout=120_000)
    assert re.search(r"p [01]\.\d\d w -?\d\.\d\d [+\u2212]", cards.first.inner_text())

    page.get_by_label("Answer at once").uncheck()
    page.get_by_label("Prompt").fill("3 +1")
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("24 tokens").wait_for(timeout=120_000)
    assert page.locator(".card.given:visible").count() == 2 and cards.count() == 26

    page.get_by_role("tab", name="Side by side").click()
    page.get_by_role("button", name="Compare").click()
    columns = page.locator(".live:visible")
    columns.nth(2).get_by_text("ms/token").wait_for(timeout=120_000)
    titles = columns.locator("h3").all_inner_texts()
    assert titles == ["stage 0 (base)", "stage 1 (think-5-2)", "stage 3 (ntp)"]
    assert [("gain" in text, "ms/token" in text) for text in columns.all_inner_texts()] == [
        (False, True),
        (True, True),
        (False, True),
    ]
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    page.get_by_label("Prompt").fill(HOSTILE)
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(HOSTILE, exact=True).first.wait_for(timeout=120_000)
    context.close()
    assert said == [] and asked and all(url.startswith(address) for url in asked)
