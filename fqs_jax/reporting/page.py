"""The report as one HTML page with style, script and charts inside; it loads nothing."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Sequence
from typing import Any

from fqs_jax.curriculum import objective
from fqs_jax.evaluation.comparison import TEST
from fqs_jax.reporting import charts, goodput, sections
from fqs_jax.reporting.collect import Reading, Report, Training, is_number
from fqs_jax.reporting.markup import escape as _e
from fqs_jax.reporting.sections import facts, figure, signed, table
from fqs_jax.runs import time_spent

# Each chart's caption, unit and curves; a curve is (metric, name, kind of line, factor).
CURVES: tuple[tuple[str, str, tuple[tuple[str, str, str, int], ...]], ...] = (
    (
        "Loss",
        "nats a token",
        (("nll_base", "without thoughts", "a", 1), ("nll_mixed", "with thoughts", "b", 1)),
    ),
    (
        "Loss on held-out text",
        "nats a token",
        (
            ("held_out/nll_base", "without thoughts", "a", 1),
            ("held_out/nll_mixed", "with thoughts", "b", 1),
        ),
    ),
    ("Gain of thinking", "nats a token", (("nll_with_minus_without", "gain", "a", -1),)),
    ("Reward", "nats", (("reward_mean", "mean", "a", 1), ("reward_std", "deviation", "b", 1))),
    ("Entropy of thoughts", "nats a draw", (("thought_entropy", "entropy", "a", 1),)),
    ("Mixing weight", "mean", (("mixing_weight_mean", "weight", "a", 1),)),
    ("Ahead of its teacher", "nats a token", (("nll_teacher_minus_student", "lead", "a", 1),)),
    (
        "Distance from its teacher",
        "nats, as weighted",
        (
            ("distill/forward_kl", "forward KL", "a", 1),
            ("distill/reverse_kl", "reverse KL", "b", 1),
            ("distill/hinge", "behind it", "a", 1),  # never beside the others
        ),
    ),
    ("Gradient norm", "language model", (("grad_norm/lm", "norm", "a", 1),)),
)
KINDS = {
    "base": "before thinking",
    "thinking": "thinks",
    "student": "trained by thoughts, thinks no more",
    "control": "control: plain training",
}
COST = {"ms_per_token": "ms/token", "flops_per_token": "FLOPs/token", "steps": "steps"}
LINKS = (
    ("models", "{} against time"),
    ("text", "What the thoughts did"),
    ("diagnostics", "Are they healthy?"),
    ("training", "Training"),
    ("reproduce", "Reproduce"),
)


_START, _END = "<!DOCTYPE html>", "<footer><p>Made by fqs_jax "


def is_page(start: bytes, end: bytes) -> bool:
    """True if a file with this start and this end is a report."""
    return start.startswith(_START.encode()) and _END.encode() in end


def page(report: Report) -> str:
    """The HTML of the page."""
    reading = "" if report.reading is None else sections.section(report.reading)
    metric = _metric(report.models.rows)[1].capitalize()
    links = "".join(
        f'<li><a href="#{anchor}">{_e(name.format(metric))}</a></li>'
        for anchor, name in LINKS
        if reading or anchor not in ("text", "diagnostics")
    )
    title = f"{report.name}: what it thinks"
    body = f"""<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>{_e(title)}</h1>
<p class="soft">{len(report.training)} stages; initial model: {_e(report.origin)}.</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main">
{_summary(report)}
{_models(report)}
{reading}
{_training(report.training)}
{_reproduce(report)}
</main>"""
    return _document(title, body, report.versions["fqs_jax"])


def viewer(reading: Reading, version: str) -> str:
    """The HTML of a page with nothing but text and the thoughts before its tokens.

    Args:
      version: of this program.
    """
    body = f'<main id="main">\n{sections.section(reading)}\n</main>'
    return _document(f"{reading.stage}: what it thinks", body, version)


def _document(title: str, body: str, version: str) -> str:
    """A whole HTML document around a body, with the style and the script of the report."""
    style, script = _asset("report.css"), _asset("report.js")
    # The policy makes the browser load nothing and run only this script.
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    return f"""{_START}
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_e(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
{body}
{_END}{_e(version)}.</p></footer>
<script>{script}</script>
</body>
</html>
"""


def _summary(report: Report) -> str:
    """Cards with the main numbers."""
    metric, name = _metric(report.models.rows)
    form = "{:.1%}" if metric == "accuracy" else "{:.4f}"
    better = max if metric == "accuracy" else min
    cards = []
    for kind, title in (
        ("base", "Base"),
        ("thinking", "With thoughts"),
        ("student", "Student"),
    ):
        of_kind = [m for m in _on_test(report) if m["kind"] == kind and is_number(m[metric])]
        if of_kind:
            chosen = of_kind[0] if kind == "base" else better(of_kind, key=lambda m: m[metric])
            time = chosen["ms_per_token"]
            spent = f", {charts.number(time)} ms a token" if is_number(time) else ""
            of = f", best of {len(of_kind)} here" if kind != "base" and len(of_kind) > 1 else ""
            cards.append(
                (f"{title}: {name}", form.format(chosen[metric]), f"{chosen['name']}{of}{spent}")
            )
    if report.reading is not None:
        d = report.reading.diagnostics
        cards.append(
            ("Gain of a thought", signed(d.gain), f"nats a token, {report.reading.source}")
        )
        found = f"{len(d.warnings)}" if d.warnings else "none"
        cards.append(("Warnings about thoughts", found, "see below" if d.warnings else "all well"))
    return facts(cards, "cards")


def _models(report: Report) -> str:
    """The trade-off as a plot and as a table."""
    metric, name = _metric(report.models.rows)
    marks = [
        charts.Mark(
            model["name"],
            model["kind"],
            model["ms_per_token"],
            model[metric],
            *(
                (_number(model["accuracy_low"]), _number(model["accuracy_high"]))
                if metric == "accuracy"
                else ()
            ),
        )
        for model in _on_test(report)
        if is_number(model[metric]) and is_number(model["ms_per_token"])
        # At a temperature the base gives the same answers.
        if metric != "accuracy" or model["temperature"] == 1
    ]
    drawn = ""
    if marks:
        kinds = [kind for kind in KINDS if any(mark.kind == kind for mark in marks)]
        keys = "".join(f"<li>{charts.symbol(kind)}{_e(KINDS[kind])}</li>" for kind in kinds)
        label = "accuracy" if metric == "accuracy" else "loss, nats a token"
        plots = "".join(
            charts.scatter(marks, "ms a token", label, width, css)
            for width, css in ((1040, "wide"), (350, "narrow"))
        )
        which = "up and left is better" if metric == "accuracy" else "down and left is better"
        drawn = figure(
            "All models",
            which,
            plots,
            f'<ul class="legend">{keys}</ul>',
        )
    return f"""
<h2 id="models">{name.capitalize()} against time</h2>
<p>Every model of the run on {_e(report.models.about or "held-out items")}. Time is the median of
one generated token for one prompt{", bars are 95% intervals over items" if metric == "accuracy" else ""}.</p>
{drawn}
{_model_table(report)}"""


def _model_table(report: Report) -> str:
    accuracy = ["accuracy"] if _metric(report.models.rows)[0] == "accuracy" else []
    headers = ["model", *accuracy, "NLL", "easy", "middle", "hard", *COST.values(), "stage"]
    rows = []
    for model in report.models.rows:
        known = is_number(model["accuracy"])
        right = (
            f"{model['accuracy']:.3f} \u00b1 {_number(model['accuracy_error']) or 0:.3f}"
            if known
            else "\u2013"
        )
        rows.append(
            [
                charts.symbol(model["kind"]) + _e(model["name"]),
                *([right] if accuracy else []),
                *(
                    f"{model[key]:.3f}" if is_number(model[key]) else "\u2013"
                    for key in ("nll", "nll_easy", "nll_middle", "nll_hard")
                ),
                *(_cell(model[key]) for key in COST),
                _e(str(model["stage"])),
            ]
        )
    return table(headers, rows, "w" + "n" * (len(headers) - 1), "All models")


def _training(training: Sequence[Training]) -> str:
    rows = []
    for entry in training:
        stage, last = entry.stage, entry.rows[-1] if entry.rows else {}
        shape = f"{stage.n_ahead}/{stage.n_ahead_talk}" if objective.of(stage).thinks else "\u2013"
        rows.append(
            [
                str(stage.number),
                _e(stage.name),
                *(_cell(last.get(key)) for key in ("nll_base", "nll_mixed")),
                f"{entry.step:,}" + ("" if entry.step >= stage.steps else f" of {stage.steps:,}"),
                *(_cell(last.get(key)) for key in ("tokens", "step_seconds")),
                _cell(entry.start.get("flops_per_step")),
                shape,
                _e(stage.objective),
            ]
        )
    headers = "stage,name,NLL,with thoughts,steps,tokens,s/step,FLOPs/step,n_ahead/talk,objective"
    summary = table(headers.split(","), rows, "nwnnnnnnn ", "Stages")
    stages = "".join(_curves(entry) for entry in training)
    return f"""
<h2 id="training">Training</h2>
<p>Losses are the last logged step's, on training text. Curves of more than {charts.MAX_POINTS} logged
steps are drawn as means of neighbours.</p>
{summary}
{goodput.section(time_spent.together(entry.spent for entry in training))}
{stages}"""


def _curves(entry: Training) -> str:
    """The charts of a stage, for the metrics that it logged."""
    figures, rows = [], (*entry.rows, *entry.held_out)
    for caption, unit, curves in CURVES:
        lines = [
            charts.Line(name, kind, [(r["step"], factor * r[metric]) for r in rows if metric in r])
            for metric, name, kind, factor in curves
        ]
        lines = [line for line in lines if line.points]
        if chart := charts.line_chart(lines):
            keys = "".join(
                f'<li><span class="key {line.kind}"></span>{_e(line.name)}: '
                f"{charts.number(line.points[-1][1])}</li>"
                for line in lines
            )
            figures.append(figure(caption, unit, chart, f'<ul class="legend">{keys}</ul>'))
    stage = entry.stage
    skipped = entry.rows[-1].get("skipped_steps", 0) if entry.rows else 0
    warning = (
        f'<p class="warn" role="note">{skipped:,.0f} steps had gradients that were not finite, and were '
        "skipped.</p>"
        if skipped
        else ""
    )
    inside = (
        f'<div class="charts">{"".join(figures)}</div>' if figures else "<p>Nothing was logged.</p>"
    )
    best = "" if entry.best is None else f", best on held-out text at {entry.best:,}"
    control = ", control" if stage.control else ""
    description = f"{stage.objective}, {entry.step:,} steps{best}{control}"
    return f"""<details{"" if stage.control else " open"}>
<summary><h3>{_e(str(stage))}</h3><span class="soft">{_e(description)}</span></summary>
{warning}{inside}</details>"""


def _reproduce(report: Report) -> str:
    commands = "\n".join(map(_e, report.commands))
    versions = [[_e(name), _e(version)] for name, version in report.versions.items()]
    config = [[_e(name), _e(value)] for name, value in report.config.items()]
    missing = (
        ""
        if any("fqs_jax.launch" in command for command in report.commands)
        else "<p>The training command was not recorded.</p>"
    )
    return f"""
<h2 id="reproduce">Reproduce</h2>
{missing}<pre tabindex="0" aria-label="Commands">{commands}</pre>
<h3>Versions</h3>
{table(["of", "version"], versions, " m", "Versions")}
<details><summary>Configuration, {len(config)} fields</summary>
{table(["field", "value"], config, "mm", "Configuration")}</details>"""


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _on_test(report: Report) -> list[dict[str, Any]]:
    """The rows of the models' main comparison; those of further splits are only in the table."""
    return [model for model in report.models.rows if model["split"] == TEST]


def _metric(models: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The metric that models are compared by, and its title: accuracy if it is known, else loss."""
    if any(is_number(model["accuracy"]) for model in models):
        return "accuracy", "accuracy"
    return "nll", "loss"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "\u2013"
    return charts.number(value) if isinstance(value, int | float) else _e(str(value))


def _asset(name: str) -> str:
    return (
        (importlib.resources.files("fqs_jax.reporting") / name).read_text(encoding="utf-8").strip()
    )


def _hash(text: str) -> str:
    """The hash of an inline style or script in the form of a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
