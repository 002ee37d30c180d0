"""The report in a real browser: nothing leaves the page, nothing goes wrong, it fits, it obeys the keyboard.

Needs playwright (in the `dev` extra) and a Chromium (tests/browsers.py).
"""

import pytest

from fqs_jax.reporting import page as page_lib
from fqs_jax.reporting.diagnosis import Thought, Token
from tests.browsers import SIZES, browser  # noqa: F401  a fixture
from tests.reporting.test_page import a_report


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page with long text, short text, and words that do not fit in a line."""
    report = a_report()
    tokens = [
        Token(f" word{i}", -1.0, (Thought("x" * (i % 60), 0.5, (i % 9 - 4) / 4),))
        for i in range(90)
    ]
    tokens[5] = Token("y" * 500, -2.0, tokens[5].thoughts)
    report.reading.documents.append(tokens)
    for number in range(40):  # more than are shown at once
        thought = Thought("z", 0.5, 0.25)
        report.reading.documents.append([Token(f"more{number}", -1.0, (thought,))])
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_lib.page(report))
    return path


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids=str)
def opened(request, browser, path):  # noqa: F811
    """The page, with what it says on the console and asks of the network."""
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        has_touch=size == "phone",
        reduced_motion="reduce",  # nothing moves on between two actions
    )
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    yield page, size, scheme
    context.close()
    assert said == [] and asked == [path.as_uri()]


def test_fits_and_follows_the_scheme(opened, tmp_path):
    page, size, scheme = opened
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= SIZES[size][0]
    for details in page.locator("details").all():
        details.evaluate("node => { node.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, shown[4:-1].split(","))) < 60) == (scheme == "dark")
    for css in ("narrow", "wide"):
        assert page.locator(f"svg.{css}").first.is_visible() == (
            css == {"phone": "narrow"}.get(size, "wide")
        )
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 50_000  # something was drawn


def test_thoughts_on_focus_and_hover(opened):
    page, size, _ = opened
    panel, tokens = page.locator("#panel"), page.locator(".t[data-thoughts]")
    assert page.locator('.t[tabindex="0"]').count() == 1  # one stop for Tab
    tokens.first.focus()
    assert "\u2039<b>\u203a" in panel.inner_text() and "0.25" in panel.inner_text()
    page.keyboard.press("ArrowRight")
    assert "worse" in panel.inner_text() and "</script>" in panel.inner_text()
    assert page.evaluate("document.activeElement.dataset.text") == "worse\n"
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.text") == " word0"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.dataset.text") == " word89"
    page.keyboard.press("End")
    last = page.evaluate("document.activeElement.dataset.text")
    assert last.startswith("more") and last != "more39"  # which is folded away
    for key in ("ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.text") == last
    assert page.locator('.t[tabindex="0"]').first.is_visible()
    page.locator("details:has(.doc) > summary").click()
    page.locator(f'.t[data-text="{last}"]').focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.text") != last
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.text") == "more39"
    page.keyboard.press("Home")
    assert page.locator('.t[aria-selected="true"]').count() == 1
    (tokens.nth(9).tap if size == "phone" else tokens.nth(9).hover)()
    assert "word7" in panel.inner_text()


def test_without_scripts_the_thoughts_are_titles(browser, path):  # noqa: F811
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    title = page.locator(".t[data-thoughts]").first.get_attribute("title")
    assert title == "+0.750 nats, weight 0.50, thought: <script>alert('x')</script> & \"quotes\""
    context.close()
