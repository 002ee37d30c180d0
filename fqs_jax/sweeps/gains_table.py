"""The table of a sweep of checkpoints on benchmarks, and its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fqs_jax.evaluation.statistics import Interval
from fqs_jax.evaluation.tradeoff import STYLES
from fqs_jax.runtime.errors import printable
from fqs_jax.sweeps import sheet as sheet_lib
from fqs_jax.sweeps.gains import Line
from fqs_jax.sweeps.sheet import SETTING, Sheet

TITLES = {
    "expected_p": "expected p",
    "accuracy": "accuracy",
    "by_characters": "by characters",
    "by_tokens": "by tokens",
    "nll": "NLL",
}
GAIN = "gain (95%)"
# Measures in the picture: name in its legend, fill of the mark, offset from the line's height.
DRAWN: dict[str, tuple[str, Literal["full", "none"], float]] = {
    "accuracy": ("accuracy", "full", -0.14),
    "expected_p": ("published metric: probability of the right answer", "none", 0.14),
}
LEGEND = (
    "Means over seeds \u00b1 standard error over seeds. Gains are differences to the base on the same items, "
    "with the 95% interval of a bootstrap over items after the mean over seeds; for NLL less is better. NLL "
    "of held-out text is in nats a token, and its items are documents. Tokens and FLOPs are those of all "
    "training from the checkpoint to the model, with its teachers and their scores."
)


def sheet(table: Sequence[Line]) -> Sheet:
    """The table as texts, with the columns of the measures that its benchmarks have."""
    measures = [name for name in TITLES if any(name in line.values for line in table)]
    with_setting = any(line.setting for line in table)
    titles = ["variant", *[SETTING] * with_setting, "model", "benchmark", "items", "seeds"]
    titles += [title for name in measures for title in (TITLES[name], GAIN)]
    rows = [_texts(line, measures, with_setting) for line in table]
    legend = f"{LEGEND} {sheet_lib.CHOSEN}" if with_setting else LEGEND
    return Sheet([*titles, "tokens", "FLOPs"], rows, legend)


def _texts(line: Line, measures: Sequence[str], with_setting: bool) -> list[str]:
    numbers = []
    for name in measures:
        gain = line.gains.get(name)
        numbers.append(sheet_lib.with_error(line.values[name]) if name in line.values else "-")
        numbers.append("-" if gain is None else _interval(gain))
    cost = [f"{line.tokens:,}", f"{line.flops:.2e}" if line.flops else "0"]
    return [
        line.variant,
        *[sheet_lib.setting(line.setting, line.is_at_edge)] * with_setting,
        line.name,
        line.benchmark or "-",
        f"{line.items:,}" if line.seeds else "-",
        sheet_lib.seeds(len(line.seeds), line.planned),
        *numbers,
        *(cost if line.seeds else ["-", "-"]),
    ]


def _interval(gain: Interval) -> str:
    return "-" if math.isnan(gain.value) else "{:+.3f} ({:+.3f} {:+.3f})".format(*gain)


def draw(table: Sequence[Line]) -> Figure:
    """A picture of gains over the base, with their intervals, a panel for each benchmark.

    Filled marks are gains in accuracy, hollow ones in the published metric. A temperature alone can raise the
    metric, so the base at its best temperature has a hollow mark too; its accuracy is that of the base.
    """
    lines = [line for line in table if line.gains.keys() & DRAWN]
    benchmarks = list(dict.fromkeys(line.benchmark for line in lines)) or [""]
    models = list(dict.fromkeys((line.variant, line.name) for line in lines))
    figure = Figure(
        figsize=(4 + 3.2 * len(benchmarks), 1.6 + 0.34 * max(1, len(models))),
        dpi=160,
        layout="constrained",
    )
    panels = figure.subplots(1, len(benchmarks), sharey=True, squeeze=False)[0]
    for axes, benchmark in zip(panels, benchmarks, strict=True):
        for line in lines:
            if line.benchmark == benchmark:
                _draw_gains(axes, line, models.index((line.variant, line.name)))
        axes.axvline(0, color="#999999", linewidth=1, linestyle=":", zorder=0)
        axes.set_title(printable(benchmark), fontsize=10, parse_math=False)
        axes.set_xlabel("gain over the base (95% over items)", fontsize=8)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)
    names = [printable(f"{variant}: {name}") for variant, name in models]
    panels[0].set_yticks(range(len(models)), names, parse_math=False)  # $ begins no formula
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    marks = [
        Line2D([], [], marker="o", color="#555555", linestyle="", fillstyle=fill, label=label)
        for measure, (label, fill, _) in DRAWN.items()
        if any(measure in line.gains for line in lines)
    ]
    if len(marks) > 1:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    return figure


def _draw_gains(axes: Axes, line: Line, y: int) -> None:
    """The gains of a line as marks with intervals, in its model's color."""
    assert line.model is not None  # it has gains
    marker, color = STYLES.get(line.model.kind, ("o", "#000000"))
    for measure, (_, fill, offset) in DRAWN.items():
        if measure not in line.gains or (line.model.tempered and measure == "accuracy"):
            continue
        gain = line.gains[measure]
        bars = axes.errorbar(
            [gain.value],
            [y + offset],
            xerr=[[gain.value - gain.low], [gain.high - gain.value]],
            fmt=marker,
            color=color,
            elinewidth=1.0,
            markersize=10 if marker == "*" else 6,  # a star has more edge than area
        )
        bars.lines[0].set_fillstyle(fill)
