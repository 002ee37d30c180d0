"""Goodput in words and as a picture."""

from fqs_jax.reporting import goodput
from fqs_jax.runs.time_spent import KINDS, Spent


def spent(until=1000.0, **seconds):
    return Spent(dict.fromkeys(KINDS, 0.0) | seconds, 0.0, until)


def test_a_line_and_json_with_what_was_spent():
    found = spent(steps=600.0, compile=65.0, text=12.34)
    assert goodput.line(found) == (
        "goodput 60.0%: of 16 min 40 s since the first start, steps 10 min 00 s, compiling 1 min 05 s, "
        "waiting for text 12.3 s, not running 5 min 22 s"
    )
    assert round(goodput.as_json(found)["seconds"]["stopped"], 6) == 322.66
    assert goodput.as_json(None) is None


def test_a_bar_for_each_kind_that_took_time():
    html = goodput.section(spent(steps=750.0, saving=250.0))
    assert html.count("<rect") == 2 and "steps 12 min 30 s, saving 4 min 10 s" in html
    assert "75.0% of 16 min 40 s were steps" in html
    found = Spent(dict.fromkeys(KINDS, 1.0), 0.0, 100.0, 5)
    assert goodput.line(found).endswith("; requests to the bucket that were repeated: 5")
    assert "; 5 requests to the bucket were repeated" in goodput.section(found)
    assert goodput.section(None) == goodput.section(spent(until=0.0)) == ""


def test_durations():
    shown = [goodput.duration(seconds) for seconds in (0.04, 59.9, 61, 3599, 11_220, 183_600)]
    assert shown == ["0.0 s", "59.9 s", "1 min 01 s", "59 min 59 s", "3 h 07 min", "2 d 03 h"]
