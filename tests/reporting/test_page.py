"""The report: its numbers against independent computations, its page, and the program."""

import dataclasses
import html
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import small_hf
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.evaluation import comparison_file, tradeoff
from fqs_jax.evaluation.comparison import Row
from fqs_jax.evaluation.comparison_file import Kept
from fqs_jax.evaluation.statistics import Interval
from fqs_jax.reporting import charts, collect, diagnosis, sections
from fqs_jax.reporting import page as page_lib
from fqs_jax.reporting.collect import Reading, Report, Settings, Training
from fqs_jax.reporting.diagnosis import Thought, Token
from fqs_jax.runs import folders, history, loading
from fqs_jax.thinking import prediction
from fqs_jax.thinking.config import Thinker
from tests.tiny_runs import (
    clock_config,
    hf_folder,
    refusal,
    run,
    save_stage,
    sentences,
    write_text,
)

NASTY = "<script>alert('x')</script> & \"quotes\""
ROW = Row("1", NASTY, Interval(0.75, 0.5, 0.9), 0.125, 1.5, 2.5, 2, "thinking")
ROWS: list[dict[str, Any]] = [
    {"step": 1, "nll_base": 2.5, "nll_mixed": 2.25, "nll_with_minus_without": -0.25, "tokens": 32},
    {"step": 2, "nll_base": 1.875, "nll_mixed": "nan", "tokens": 64, "time": {"step_seconds": 0.5}},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A thinking run on the built-in task, with random parameters and metrics made up."""
    root = tmp_path_factory.mktemp("report") / "W"
    config = clock_config({"data.clock.lengths": (1, 2)})
    for number in (0, 1, 3):
        save_stage(root, config, number, seed=number)
        start = {"event": "start", "step": 0, "flops_per_step": 123456789}
        lines = map(json.dumps, [start, *ROWS])
        (root / f"stage_{number}" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def report(root):
    return collect.collect(root, Settings(tokens=60, samples=3))


def a_report(**changes) -> Report:
    """One that is made up, and full of what must be escaped."""
    stage = Stage(1, NASTY, "quiet_star", n_ahead=5, n_ahead_talk=2, steps=2)
    tokens = [
        Token(NASTY),
        Token("<b>", -2.0, (Thought(NASTY, 0.25, 1.0), Thought("&", 0.75, 0.5))),
        Token("worse\n", -0.5, (Thought("</script>", 0.5, -0.75),)),
    ]
    diagnostics = diagnosis.Diagnostics(
        gain=0.1,
        gain_error=0.2,
        helped=0.5,
        weight=0.5,
        length=2,
        gain_of_length={1: 0.05, 2: 0.1},
        length_used=2,
        entropy=(0.4, 0.2),
        most_entropy=3.0,
        distinct=3,
        count=3,
        frequent=(diagnosis.Frequent(NASTY, 1.0, 0.1),),
        warnings=(NASTY,),
    )
    numbers = tuple({k: float(v) for k, v in row.items() if k != "time"} for row in ROWS)
    fields: dict[str, Any] = {
        "name": NASTY,
        "origin": NASTY,
        "training": [Training(stage, 2, numbers, {})],
        "models": Kept([comparison_file.as_json(ROW)], NASTY, {}),
        "reading": Reading(NASTY, NASTY, False, [tokens], diagnostics),
        "config": {NASTY: NASTY},
        "versions": {"fqs_jax": NASTY},
        "commands": [NASTY],
    }
    return Report(**fields | changes)


class Page(HTMLParser):
    """Tags and text that a browser would find."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# What thoughts did --------------------


def test_gains_are_those_of_the_cached_way_of_thinking(root, report):
    """The report scores sampled thoughts in one pass; `think` rolls the same thoughts out with a cache."""
    reading = report.reading
    loaded = loading.load(str(root), "1")
    thought = dataclasses.replace(loaded.thought, rationales=3)
    opening = len(loaded.tokenizer.opening)
    for d, document in enumerate(reading.documents[:10]):
        text = "".join(token.text for token in document)
        ids = loaded.tokenizer.opening + loaded.tokenizer.encode(text)
        tokens_BxT = jnp.zeros((8, 32), jnp.int32).at[d % 8, : len(ids)].set(jnp.array(ids))
        mask_BxT = jnp.zeros((8, 32), bool).at[d % 8, : len(ids)].set(True)
        key = jax.random.fold_in(jax.random.key(0), d // 8)
        (mixed, drawn, weight), base_BxPxV = prediction.think(
            loaded.params, tokens_BxT, key, Thinker(loaded.model, thought), mask_BxT
        )
        base_BxPxV = jax.nn.log_softmax(base_BxPxV)
        for t, token in enumerate(document, start=opening - 1):
            if not token.thoughts:
                continue
            base = float(base_BxPxV[d % 8, t, ids[t + 1]])
            assert token.base == pytest.approx(base, abs=2e-5)
            for r, sampled in enumerate(token.thoughts):
                gain = float(mixed[d % 8, t, r, ids[t + 1]]) - base
                assert sampled.gain == pytest.approx(gain, abs=5e-5)
                assert sampled.weight == pytest.approx(float(weight[d % 8, t, r]), abs=2e-5)
                assert sampled.text == loaded.tokenizer.decode(drawn[d % 8, t, r].tolist())


def test_text_is_held_out_problems_whole(root, report):
    _, config = folders.read_run(root, 0)
    expected = [
        f"{p} {a}" for p, a in corpus.built_in_task(config.data, config.seed).problems("test")
    ]
    shown = ["".join(token.text for token in document) for document in report.reading.documents]
    assert shown == expected[: len(shown)] and len(shown) > 5
    assert sum(map(len, report.reading.documents)) <= 60
    assert report.reading.held_out


def test_diagnostics_sum_the_tokens_up(report):
    d = report.reading.diagnostics
    tokens = [t for document in report.reading.documents for t in document if t.thoughts]
    sampled = [thought for token in tokens for thought in token.thoughts]
    assert d.count == len(sampled) == 3 * len(tokens)
    assert d.gain == pytest.approx(np.mean([thought.gain for thought in sampled]), abs=1e-5)
    assert d.weight == pytest.approx(np.mean([thought.weight for thought in sampled]), abs=1e-5)
    assert d.length == 2 and list(d.gain_of_length) == [1, 2] and len(d.entropy) == 2
    assert all(0 <= entropy <= d.most_entropy + 1e-5 for entropy in d.entropy)
    texts = [thought.text for thought in sampled]
    most = max(set(texts), key=texts.count)
    assert d.frequent[0].share == pytest.approx(texts.count(most) / len(texts))


def fake(loaded, gains, drawn_NxRxK, entropy, weight=0.5):
    shown = [[Token("x", -1.0, (Thought("t", weight, gain),)) for gain in gains]]
    length = drawn_NxRxK.shape[-1]
    by_length = {k: float(np.mean(gains)) for k in (1, length)}
    return diagnosis.diagnose(shown, by_length, np.full(length, entropy), drawn_NxRxK, loaded)


def test_collapse_is_said(root):
    loaded = loading.load(str(root), "1")
    rng = np.random.default_rng(0)
    various = rng.integers(0, 17, (100, 1, 3))
    helped = 0.5 + 0.1 * rng.normal(size=100)
    assert fake(loaded, helped, various, 1.0).warnings == ()
    cases = {
        "hurt": fake(loaded, -helped, various, 1.0),
        "chance": fake(loaded, rng.normal(size=100) * 1e-3, various, 1.0),
        "One thought": fake(loaded, helped, np.tile([1, 2, 3], (100, 1, 1)), 1.0),
        "single token": fake(loaded, helped, np.repeat(various[..., :1], 3, axis=-1), 1.0),
        "entropy": fake(loaded, helped, various, 0.01),
        "mixing weight": fake(loaded, helped, various, 1.0, weight=0.001),
    }
    for word, diagnostics in cases.items():
        assert len(diagnostics.warnings) == 1 and word in diagnostics.warnings[0], word
    greedy = dataclasses.replace(loaded, thought=dataclasses.replace(loaded.thought, temperature=0))
    assert fake(greedy, helped, various, 0.0).warnings == ()  # nothing is drawn
    latent = loaded.with_thought(tokens="latent")
    assert fake(latent, helped, np.zeros((100, 1, 3), int), 0.0).warnings == ()  # without words


def test_lengths_to_try():
    assert [diagnosis.lengths_to_try(k) for k in (1, 2, 3, 8, 13)] == [
        *([1], [1, 2], [1, 2, 3]),
        *([1, 2, 4, 8], [1, 2, 4, 8, 13]),
    ]


def test_pieces_are_the_text(tmp_path):
    folder = hf_folder(tmp_path / "hf")
    tokenizer = tokenizer_lib.load(folder)
    for text in [*sentences(5), "caf\u00e9 \u6f22\u5b57 \U0001f600!", "two\nlines"]:
        ids = tokenizer.encode(text)
        found = diagnosis.pieces(tokenizer, ids)
        assert len(found) == len(ids) and "".join(found) == tokenizer.decode(ids)
        assert "\ufffd" not in "".join(found)


# The page --------------------


def test_the_page_is_whole_and_its_numbers_are_those_of_the_files(root, report):
    text = page_lib.page(report)
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        if tag == "a":
            assert attrs["href"][1:] in ids
        assert not {"src", "action", "data", "poster", "srcset", "style"} & attrs.keys(), (
            tag,
            attrs,
        )
        assert not any(name.startswith("on") for name in attrs)
        if tag == "link":
            assert attrs == {"rel": "icon", "href": "data:,"}
        if tag == "svg":
            assert attrs.get("aria-hidden") == "true" or attrs["aria-label"]
    assert not re.search(r"https?://|url\(|@import|fetch\(", text)
    assert {tag for tag, _ in page.tags if tag in ("main", "nav", "h1", "title")} == {
        *("main", "nav", "h1", "title")
    }

    assert "1.88" in text and "without thoughts from 2.50 to 1.88" in text  # of metrics.jsonl
    assert "gain from 0.250 to 0.250" in text and "1.23e8" in text
    assert "nan" not in page.text.lower().split()
    for row in report.models.rows:
        assert html.escape(row["name"]) in text
        assert f"{row['accuracy']:.3f} \u00b1 {row['accuracy_error']:.3f}" in page.text
    tokens = [attrs for tag, attrs in page.tags if "data-thoughts" in attrs]
    expected = [t for document in report.reading.documents for t in document if t.thoughts]
    assert len(tokens) == len(expected)
    for attrs, token in zip(tokens, expected, strict=True):
        data = json.loads(attrs["data-thoughts"])
        assert attrs["data-text"] == token.text and attrs["role"] == "option"
        assert data["gain"] == pytest.approx(token.gain, rel=1e-4)
        assert [thought[0] for thought in data["thoughts"]] == [t.text for t in token.thoughts]
    assert f"python -m fqs_jax.report --workdir={root} --tokens=60 --samples=3\n" in page.text
    assert "not recorded" in page.text and "jax" in page.text


def test_everything_is_escaped():
    text = page_lib.page(a_report())
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<b>" not in text.split("</style>")[1].replace('<b class="', "")
    assert page.text.count("alert('x')") > 10
    assert "This text is from the training set" in text
    assert "\u21b5" in text  # a line break that shows


def test_text_from_outside_cannot_turn_the_page_round(monkeypatch):
    """Nor can a name that is not UTF-8 keep the page from being written."""
    hostile = "\u202eevil\x1b[1m\u2066\udcff"
    monkeypatch.setattr("tests.reporting.test_page.NASTY", hostile)
    made = a_report()
    made.models.rows[0]["name"] = hostile
    page = page_lib.page(made)
    page.encode()
    assert not set(hostile) & set(page) - set("evil[1m")
    assert page.count(r"\u202eevil\x1b[1m\u2066\udcff") > 10
    thoughts = [
        dict(tag[1])["data-thoughts"] for tag in Page(page).tags if "data-thoughts" in tag[1]
    ]
    said = {text for data in thoughts for text, *_ in json.loads(data or "")["thoughts"]}
    assert r"\u202eevil\x1b[1m\u2066\udcff" in said
    assert re.search(r"h1,[^}]*\.doc[^}]*unicode-bidi: isolate", page)


def test_the_name_of_a_stage_keeps_its_letters():
    reading = dataclasses.replace(a_report().reading, stage="stage 1 (Think-A)")
    assert "Stage 1 (Think-A) read " in Page(page_lib.page(a_report(reading=reading))).text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, True, "0.5"])
def test_a_number_that_is_none_is_not_drawn(value):
    """Neither in the comparison nor in the thoughts."""
    models = Kept([comparison_file.as_json(ROW) | {"ms_per_token": 2.0}], "x", {})
    for name in ("accuracy", "accuracy_low", "accuracy_high", "nll", "nll_easy", "ms_per_token"):
        damaged = models._replace(rows=[models.rows[0] | {name: value}])
        Page(page_lib.page(a_report(models=damaged)))
    if isinstance(value, float):
        reading = a_report().reading
        tokens = [[Token("<b>", value, (Thought("a", value, value),))], *reading.documents]
        numbers = dataclasses.replace(
            reading.diagnostics, gain=value, gain_of_length={1: value, 2: 0.1}, entropy=(value,)
        )
        shown = dataclasses.replace(reading, documents=tokens, diagnostics=numbers)
        page = Page(page_lib.page(a_report(reading=shown)))
        data = [dict(tag[1])["data-thoughts"] for tag in page.tags if "data-thoughts" in tag[1]]
        assert len(data) == 3 and all(
            json.loads(text or "", parse_constant=pytest.fail) for text in data
        )


@pytest.mark.exhaustive
def test_only_reports_are_replaced(root, tmp_path):
    """Neither a metrics file nor a page of others, nor a link, nor a device."""
    page = page_lib.page(a_report()).encode()
    assert page_lib.is_page(page[:65536], page[-65536:])
    (tmp_path / "link.html").symlink_to(root / "stage_1" / "metrics.jsonl")
    (tmp_path / "theirs.html").write_text("<!DOCTYPE html>\n<html></html>\n")
    metrics = root / "stage_1" / "metrics.jsonl"
    before = metrics.read_bytes()
    for out, expected in (
        (metrics, "exists already and is no report"),
        (tmp_path / "theirs.html", "exists already and is no report"),
        (tmp_path / "link.html", "is a link"),
        ("/dev/null", "is a device"),
    ):
        assert expected in refusal("report", root, f"--out={out}")
    assert metrics.read_bytes() == before and (tmp_path / "link.html").is_symlink()


def test_a_run_that_never_thinks_has_a_page():
    stage = Stage(0, "base", "next_token", steps=2)
    text = page_lib.page(a_report(reading=None, training=[Training(stage, 2, (), {})]))
    assert "#text" not in text and "Nothing was logged" in text and 'id="panel"' not in text


def test_further_splits_are_in_the_table_alone():
    """The best model is that on `test`, whatever it does elsewhere."""
    elsewhere = dataclasses.replace(
        ROW, name="think: elsewhere", accuracy=Interval(0.99, 0.9, 1.0), split="elsewhere"
    )
    rows = [comparison_file.as_json(row) for row in (ROW, elsewhere)]
    page = page_lib.page(a_report(models=Kept(rows, "problems", {})))
    assert "75.0%" in page and "99.0%" not in page
    assert page.count("think: elsewhere") == 1 and "0.990" in page


def test_models_without_accuracy_are_compared_by_loss():
    rows = [Row("1", "thinks", nll=1.25, ms_per_token=2.5, steps=2)]
    models = [comparison_file.as_json(row) | {"flops_per_token": 4096} for row in rows]
    page = Page(page_lib.page(a_report(models=Kept(models, "", {}))))
    assert "Loss against time" in page.text and "accuracy" not in page.text
    assert "1.250" in page.text and "FLOPs/token" in page.text and "4,096" in page.text


def test_kinds_of_models_have_colours_of_their_own():
    style = page_lib._asset("report.css")
    coloured = set(re.findall(r"\.mark\.(\w+) \{ fill:", style))
    assert coloured | {"control"} == set(page_lib.KINDS) == set(tradeoff.STYLES)


@pytest.mark.parametrize(
    "gain, css",
    [(0, ""), (0.1, ""), (0.3, "p1"), (1.0, "p4"), (9.0, "p4"), (-0.5, "n2"), (-3, "n4")],
)
def test_colours(gain, css):
    assert sections.colour(gain, 1.0) == css


# Charts --------------------


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 10, [0, 5, 10]), (0.11, 0.39, [0.1, 0.2, 0.3, 0.4]), (-1, 1, [-1, 0, 1]), (3, 3, None)],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    found = charts.ticks(low, high, 4)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 7
    assert expected is None or found == expected


def test_curves_leave_out_what_is_not_finite():
    line = charts.Line("x", "a", [(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)])
    drawn = charts.line_chart([line])
    assert drawn.count(",") > 0 and "nan" not in drawn and "inf" not in drawn
    assert len(re.search('points="(.*?)"', drawn)[1].split()) == 2
    assert charts.line_chart([dataclasses.replace(line, points=[(1, math.nan)])]) == ""


def test_long_curves_are_thinned_to_means():
    points = [(float(i), float(i % 2)) for i in range(10_001)]
    thin = charts.thinned(points)
    assert len(thin) <= charts.MAX_POINTS and thin[-1] == points[-1]
    assert np.mean([y for _, y in thin]) == pytest.approx(0.5, abs=0.02)


# evaluation.json --------------------


def test_a_comparison_is_kept_until_a_stage_is_trained_on(root, report, tmp_path):
    assert (root / comparison_file.NAME).exists()
    kept = comparison_file.read(root)
    assert kept == report.models and kept.about == "held-out problems"
    row = Row("0", "base", nll=1.0, ms_per_token=2.0, steps=3)
    other = tmp_path / "W"
    config = clock_config()
    save_stage(other, config, 0, step=2)
    assert comparison_file.read(other) is None
    comparison_file.write(other, [row], "a text")
    assert comparison_file.read(other).rows[0]["accuracy"] is None
    save_stage(other, config, 0, step=6)
    assert comparison_file.read(other) is None
    (other / comparison_file.NAME).write_text("{")
    assert comparison_file.read(other) is None


# The door --------------------


@pytest.mark.exhaustive
@pytest.mark.slow
def test_refusals_are_one_line(root, report, tmp_path):
    assert "there is no folder" in refusal("report", tmp_path / "missing")
    assert "--workdir is missing" in refusal("report")
    assert "unknown argument" in refusal("report", root, "more")
    assert "does not think" in refusal("report", root, "--stage=0")
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal("report", root, f"--out={tmp_path / 'file' / 'page.html'}")
    assert "is a folder" in refusal("report", root, f"--out={tmp_path}")
    assert "is no working directory" in refusal("report", tmp_path)
    save_stage(tmp_path / "W", clock_config(), 0, step=2)
    assert "no finished stage" in refusal("report", tmp_path / "W")


def test_the_door_prints_the_path(root, tmp_path):
    out = tmp_path / "page.html"
    done = run("report", f"--workdir={root}", f"--out={out}", "--tokens=20", "--samples=1")
    assert done.stdout == f"{out}\n"
    Page(out.read_text())


def test_commands_are_recorded_once(tmp_path):
    for command in ("a", "a", "b", "a"):
        history.record_command(tmp_path, command)
    assert history.commands(tmp_path) == ["a", "b", "a"]


@pytest.mark.exhaustive
def test_a_run_on_text_shows_training_text_and_says_so(tmp_path):
    config = small_hf.get_config()
    config.init_from = str(hf_folder(tmp_path / "model"))
    config.data.text = str(write_text(tmp_path / "text.jsonl", 30))
    config.data.seq_len = 24
    config.stage_1.update(n_ahead=4, n_ahead_talk=1)
    root = tmp_path / "W"
    save_stage(root, config, 1)
    report = collect.collect(root, Settings(tokens=20, max_tokens=12, samples=2))
    assert report.reading is not None and not report.reading.held_out
    assert comparison_file.read(root) is None  # loss on training text is not kept as an evaluation
    shown = "".join(token.text for token in report.reading.documents[0])
    assert any(sentence.startswith(shown.strip()) for sentence in sentences(30)), shown
    [base, *_] = report.models.rows
    assert math.isfinite(base["nll"]) and base["accuracy"] is None
    assert "training text" in Page(page_lib.page(report)).text
