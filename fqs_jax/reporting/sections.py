"""The sections of the report about thoughts: coloured text, tokens most helped and hurt, diagnostics."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from fqs_jax.reporting import charts
from fqs_jax.reporting.collect import Reading
from fqs_jax.reporting.diagnosis import Diagnostics, Token
from fqs_jax.reporting.markup import escape as _e
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import visible

LEVELS = 4  # steps of colour for helped tokens, and as many for hurt ones
QUANTILE = 0.98  # quantile of |gain| that gets the full colour
FIRST = 24  # short documents shown before a fold
SHORT = 24  # longest document, in tokens, that is shown in columns
EXTREMES = 10  # rows in each of the tables of most helped and most hurt tokens
CONTEXT = 8  # tokens shown before each of those


def section(reading: Reading) -> str:
    """The HTML of all sections about thoughts."""
    tokens = [token for document in reading.documents for token in document if token.thoughts]
    gains = [abs(token.gain) for token in tokens if math.isfinite(token.gain)]
    full = max(0.01, float(np.quantile(gains or [0.0], QUANTILE)))
    samples = len(tokens[0].thoughts)
    stage = reading.stage[:1].upper() + reading.stage[1:]  # capitalize() would change its name
    caution = (
        ""
        if reading.held_out
        else _note(
            "This text is from the training set: gains on it may be larger than on other text. "
            "Give held-out text with --text=FILE."
        )
    )
    return f"""
<h2 id="text">What the thoughts did</h2>
<p>{_e(stage)} read {_e(reading.source)} and thought before every token, {samples}
independent {_plural(samples, "time")}. Colour is by how many nats a thought made the token likelier than
the plain prediction of the same model, mean of the samples.</p>
<p class="scale" aria-hidden="true">{_scale(full)}</p>
<p>Point at a token or tap it to see its thoughts; with the keyboard, Tab to the
text and use the arrow keys.</p>
{caution}
<div class="reading">
<div>{_documents(reading.documents, full)}</div>
<aside class="panel" id="panel" aria-live="polite" aria-label="Thoughts before the chosen token">
<p class="soft">Thoughts before the chosen token appear here.</p></aside>
</div>
<h3>Most helped</h3>
{_extremes(reading.documents, full, best=True)}
<h3>Most hurt</h3>
{_extremes(reading.documents, full, best=False)}
{_all_tokens(reading.documents)}
<h2 id="diagnostics">Are the thoughts healthy?</h2>
{diagnostics(reading.diagnostics)}
"""


def _documents(documents: Sequence[Sequence[Token]], full: float) -> str:
    short = max(map(len, documents)) <= SHORT
    first = FIRST if short else max(1, FIRST // 6)
    drawn = [_document(document, i, full) for i, document in enumerate(documents)]
    css = "docs short" if short else "docs long"

    def box(part: Sequence[str], name: str) -> str:
        return f'<div class="{css}" role="listbox" aria-label="{name}">{"".join(part)}</div>'

    shown = box(drawn[:first], "Tokens of the text")
    if len(drawn) <= first:
        return shown
    rest = box(drawn[first:], "Tokens of more text")
    return f"{shown}<details><summary>{len(drawn) - first} more</summary>{rest}</details>"


def _document(document: Sequence[Token], number: int, full: float) -> str:
    inside = "".join(_token(token, full) for token in document)
    return f'<div class="doc" role="group" aria-label="Document {number + 1}">{inside}</div>'


def _token(token: Token, full: float) -> str:
    if not token.thoughts:
        return f'<span class="t" role="option" aria-selected="false">{_visible(token.text)}</span>'
    best = max(token.thoughts, key=lambda thought: abs(thought.gain))
    description = f"{signed(token.gain)} nats, weight {token.weight:.2f}, thought: {best.text}"
    data = {
        "base": _rounded(token.base or 0.0),
        "gain": _rounded(token.gain),
        "thoughts": [
            [visible(t.text), _rounded(t.weight), _rounded(t.gain)] for t in token.thoughts
        ],
    }
    attributes = {
        "class": f"t {colour(token.gain, full)}".strip(),
        "title": description,
        "aria-label": f"{token.text.strip() or 'blank'}, {signed(token.gain)} nats",
        "data-text": token.text,
        "data-thoughts": json.dumps(files.nan_as_none(data), ensure_ascii=False),
    }
    written = " ".join(f'{key}="{_e(value)}"' for key, value in attributes.items())
    return (
        f'<span role="option" aria-selected="false" tabindex="-1" {written}>'
        f"{_visible(token.text)}</span>"
    )


def colour(gain: float, full: float) -> str:
    """The style class of a gain: p1 to p4 if the thought helped, n1 to n4 if it hurt, "" near zero."""
    if not math.isfinite(gain):
        return ""
    level = min(LEVELS, round(LEVELS * abs(gain) / full))
    return f"{'p' if gain > 0 else 'n'}{level}" if level else ""


def _scale(full: float) -> str:
    """The legend of colours, with numbers at its ends and in the middle."""
    steps = []
    for level in range(-LEVELS, LEVELS + 1):
        gain = full * level / LEVELS
        description = (
            signed(gain, 1 if full >= 1 else 2) if level in (-LEVELS, 0, LEVELS) else "&nbsp;"
        )
        steps.append(f'<b class="{colour(gain, full)}">{description}</b>')
    return f"hurt&nbsp; {''.join(steps)} &nbsp;helped, nats"


def _extremes(documents: Sequence[Sequence[Token]], full: float, best: bool) -> str:
    """A table of the tokens with the largest or smallest gain, in context, with the strongest thought."""
    sign = 1 if best else -1
    places = [
        (sign * token.gain, d, i)
        for d, document in enumerate(documents)
        for i, token in enumerate(document)
        if token.thoughts and sign * token.gain > 0
    ]
    if not places:
        return f"<p>Thoughts made no token {'likelier' if best else 'less likely'}.</p>"
    rows = []
    for _, d, i in sorted(places, key=lambda place: (-place[0], place[1:]))[:EXTREMES]:
        token = documents[d][i]
        before = "".join(other.text for other in documents[d][max(0, i - CONTEXT) : i])
        mark = f'<mark class="{colour(token.gain, full)}">{_visible(token.text)}</mark>'
        context = _visible(before) + mark if before else mark
        strongest = max(token.thoughts, key=lambda thought: sign * thought.gain)
        rows.append(
            [context, *_numbers(token), _visible(strongest.text), charts.number(strongest.weight)]
        )
    headers = [
        "token in its place",
        "nats",
        "p without",
        "p with",
        "strongest thought",
        "its weight",
    ]
    return table(headers, rows, kinds="mnnnmn", label="Most helped" if best else "Most hurt")


def _all_tokens(documents: Sequence[Sequence[Token]]) -> str:
    rows = []
    for d, document in enumerate(documents):
        for token in document:
            if token.thoughts:
                description = "\n".join(
                    f"{_visible(t.text)} ({t.weight:.2f}, {signed(t.gain)})" for t in token.thoughts
                )
                rows.append([str(d + 1), _visible(token.text), *_numbers(token), description])
    headers = ["document", "token", "nats", "p without", "p with", "thoughts (weight, nats)"]
    inside = table(headers, rows, kinds="nmnnnm", label="All tokens")
    return f"<details><summary>All of it as a table</summary>{inside}</details>"


def _numbers(token: Token) -> list[str]:
    assert token.base is not None
    return [
        signed(token.gain),
        charts.number(math.exp(token.base)),
        charts.number(math.exp(token.mixed)),
    ]


def diagnostics(d: Diagnostics) -> str:
    """The HTML of the diagnostics: warnings, main numbers, charts and frequent thoughts."""
    if d.warnings:
        items = "".join(f"<li>{_e(warning)}</li>" for warning in d.warnings)
        verdict = (
            f'<div class="warn" role="note"><strong>Look at this:</strong><ul>{items}</ul></div>'
        )
    else:
        verdict = '<p class="fine">No sign of collapse.</p>'
    entropy = float(np.mean(d.entropy))
    used = f"{d.length_used} of {d.length}" if d.length_used else f"none of {d.length}"
    cards = facts(
        [
            ("Gain of a thought", signed(d.gain, 4), f"\u00b1 {d.gain_error:.1g} nats a token"),
            ("Tokens helped", f"{d.helped:.0%}", "made likelier, however little"),
            ("Mixing weight", f"{d.weight:.3f}", "mean"),
            ("Length used", used, "tokens that give 90% of the gain"),
            ("Entropy of a draw", f"{entropy:.2f}", f"nats, at most {d.most_entropy:.2f}"),
            ("Different thoughts", f"{d.distinct:,}", f"of {d.count:,} sampled"),
        ]
    )
    lengths = [(str(k), gain) for k, gain in d.gain_of_length.items()]
    entropies = [(str(k + 1), value) for k, value in enumerate(d.entropy)]
    rows = [
        [_visible(often.text), f"{often.share:.1%}", signed(often.gain)] for often in d.frequent
    ]
    return f"""{verdict}{cards}
<div class="charts">
{
        figure(
            "Gain by length",
            "nats, thoughts cut short",
            charts.bar_chart(
                lengths, _described("Gain of a thought cut to k tokens", lengths), "tokens kept"
            ),
        )
    }
{
        figure(
            "Entropy by place in the thought",
            "nats",
            charts.bar_chart(
                entropies, _described("Entropy of each draw", entropies), "token of the thought"
            ),
        )
    }
</div>
<h3>Most frequent thoughts</h3>
{
        table(
            ["thought", "share", "mean gain, nats"],
            rows,
            kinds="mnn",
            label="Most frequent thoughts",
        )
    }"""


def _described(title: str, bars: Sequence[tuple[str, float]]) -> str:
    return f"{title}: " + ", ".join(f"{name}: {charts.number(value)}" for name, value in bars)


def figure(title: str, unit: str, chart: str, legend: str = "") -> str:
    """The HTML of a chart with its title, unit and legend."""
    caption = f"<figcaption>{_e(title)} <span>{_e(unit)}</span></figcaption>"
    return f"<figure>{caption}{legend}{chart}</figure>"


def facts(rows: Sequence[tuple[str, str, str]], css: str = "facts") -> str:
    """The HTML of cards, from (name, value, remark)."""
    inside = "".join(
        f"<div><dt>{_e(name)}</dt><dd>{_e(value)}<small>{_e(more)}</small></dd></div>"
        for name, value, more in rows
    )
    return f'<dl class="{css}">{inside}</dl>'


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], kinds: str, label: str) -> str:
    """The HTML of a table that scrolls sideways on its own.

    Args:
      rows: cells as HTML, already escaped.
      kinds: one letter for each column: `n` number, `m` verbatim text, `w` text on one line, space for
        other text.
      label: description for screen readers.
    """
    css = [f' class="{kind}"' if kind.strip() else "" for kind in kinds]
    head = "".join(
        f'<th scope="col"{c if "n" in c else ""}>{_e(name)}</th>'
        for c, name in zip(css, headers, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{cell}</td>" for c, cell in zip(css, row, strict=True)) + "</tr>"
        for row in rows
    )
    region = f'class="scroll" role="region" tabindex="0" aria-label="{_e(label)}"'
    return f"<div {region}><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def signed(value: float, digits: int = 3) -> str:
    """The value with a sign as wide as a digit; a value that would round to zero as a power of ten."""
    if not value or not math.isfinite(value):
        return str(value) if value else "0"
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        text = f"{abs(value):.0e}".replace("e-0", "e\u2212").replace("e-", "e\u2212")
    return ("\u2212" if value < 0 else "+") + text


def _note(text: str) -> str:
    return f'<p class="warn" role="note">{_e(text)}</p>'


def _visible(text: str) -> str:
    """The text escaped, with visible line breaks; a dot for empty text."""
    return _e(text).replace("\n", "\u21b5\n") or "\u00b7"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"
