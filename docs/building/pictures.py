"""The drawings of docs/concepts.md: `python docs/building/pictures.py` writes docs/pictures/*.svg.

Only the standard library is used. tests/test_docs.py compares the files with what this program draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "pictures"

TEXT, THOUGHT, MARK, FORCED = "#3f6fb5", "#d9822b", "#8a5a9e", "#7b8794"  # kinds of slots
INK, FAINT, PAPER = "#1f2933", "#cbd2d9", "#ffffff"
WORDS = ("5", "+1", "+3", "=", "9")  # a problem of the tiny default
NUM_SAMPLED, NUM_FORCED = 2, 1  # K and A - 1

# The parts of a drawing --------------------


def drawing(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole SVG file, on white paper, so that it can be read on a dark page too."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="Helvetica, Arial, sans-serif" role="img">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def words(x: float, y: float, text: str, size: int = 14, colour: str = INK, more: str = "") -> str:
    """A line of text whose base line begins at (x, y)."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{more}>{escape(text)}</text>'
    )


def middle(x: float, y: float, text: str, size: int = 14, colour: str = INK) -> str:
    """A line of text whose base line is centred at (x, y)."""
    return words(x, y, text, size, colour, ' text-anchor="middle"')


def box(x: float, y: float, width: float, text: str, colour: str, height: float = 30) -> str:
    """A filled box with white text in it."""
    rect = (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{colour}"/>'
    )
    return rect + middle(x + width / 2, y + height / 2 + 5.5, text, 16, PAPER)


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight arrow from (x1, y1) to (x2, y2)."""
    return (
        f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{INK}" stroke-width="1.5" fill="none" '
        'marker-end="url(#tip)"/>'
    )


# The two phases --------------------


SAMPLING = (
    (TEXT, "the text, once:"),
    (TEXT, "all thoughts read it"),
    (MARK, "‹ ›  learned marks"),
    (THOUGHT, "t1 t2  sampled tokens"),
)
SCORING = (
    (INK, "two predictions of the"),
    (INK, "next words: without"),
    (INK, "and with the thought,"),
    (INK, "mixed with weight w"),
    (INK, "reward: how much likelier"),
    (INK, "the next words became"),
    (FORCED, "next words, given"),
)


def two_phases() -> str:
    """A step of training: thoughts are sampled after the text pass, then scored together with it."""
    sampled = ["‹", *(f"t{k + 1}" for k in range(NUM_SAMPLED))]
    scored = [*sampled, "›", *["next"] * NUM_FORCED]
    parts = _phase(
        20, "1: sample", "no gradient; draw by draw, at all positions", sampled, SAMPLING
    )
    parts += _phase(216, "2: score", "one differentiable pass, all slots at once", scored, SCORING)
    return drawing(690, 466, "The two phases of a training step", parts)


def _phase(
    top: float, name: str, note: str, slots: list[str], legend: tuple[tuple[str, str], ...]
) -> list[str]:
    """A title, the text as a row of boxes, below each word its thought, and a legend on the right."""
    left, wide, column = 20, 70, 84
    parts = [
        words(left, top + 20, name, 20, INK, ' font-weight="bold"'),
        words(left + 124, top + 20, note, 16, FORCED),
    ]
    for i, word in enumerate(WORDS):
        x = left + i * column
        parts.append(box(x, top + 40, wide, word, TEXT))
        following = WORDS[i + 1] if i + 1 < len(WORDS) else "\N{EN DASH}"
        for m, slot in enumerate(slots):
            y = top + 80 + 30 * m
            label = following if slot == "next" else slot
            colour = {"‹": MARK, "›": MARK, "next": FORCED}.get(slot, THOUGHT)
            parts.append(box(x + 6, y, wide - 12, label, colour, 24))
            if "next" not in slots and m + 1 < len(slots):  # one draw after another
                parts.append(arrow(x + wide + 1, y + 12, x + wide + 1, y + 40))
    parts += [
        words(left + len(WORDS) * column + 14, top + 60 + 27 * i, text, 16, colour)
        for i, (colour, text) in enumerate(legend)
    ]
    return parts


# What a query sees --------------------


class Slot(NamedTuple):
    """A row or column of the picture: a word of the text, or a slot of the thought after a word.

    Attributes:
      position: of the word in the text.
      slot: number within the thought, None for the word itself.
    """

    position: int
    slot: int | None
    name: str
    colour: str


def sees(query: Slot, key: Slot) -> bool:
    """True if a query attends to a key: earlier text, and earlier slots of its own thought."""
    if key.slot is None:
        return key.position <= query.position
    return query.slot is not None and query.position == key.position and key.slot <= query.slot


def all_slots(thinking: tuple[int, ...] = (1, 3)) -> list[Slot]:
    """The words of the text, then the thoughts after some of them."""
    slots = [Slot(i, None, word, TEXT) for i, word in enumerate(WORDS)]
    for i in thinking:
        names = ["‹", *(f"t{k + 1}" for k in range(NUM_SAMPLED)), "›", WORDS[i + 1]]
        colours = [MARK, *[THOUGHT] * NUM_SAMPLED, MARK, FORCED]
        slots += [Slot(i, m, *both) for m, both in enumerate(zip(names, colours, strict=True))]
    return slots


def visibility() -> str:
    """Which keys each query sees, as a matrix."""
    slots, cell, left, top = all_slots(), 28, 250, 96
    size = cell * len(slots)
    parts = [
        middle(left + size / 2, 28, "keys: what is seen", 18),
        words(24, 28, "queries: what sees", 18),
    ]
    for n, slot in enumerate(slots):
        place = n * cell
        parts.append(middle(left + place + cell / 2, top - 10, slot.name, 16, slot.colour))
        parts.append(
            words(left - 12, top + place + 19, slot.name, 16, slot.colour, ' text-anchor="end"')
        )
        for k, key in enumerate(slots):
            colour = key.colour if sees(slot, key) else "#eef1f4"
            parts.append(
                f'<rect x="{left + k * cell + 1}" y="{top + place + 1}" width="{cell - 2}" '
                f'height="{cell - 2}" rx="3" fill="{colour}"/>'
            )
    for first, label in ((0, "the text"), (5, "thought after +1"), (10, "thought after =")):
        count = 5 * cell
        parts.append(words(24, top + first * cell + count / 2 + 5, label, 16))
        parts.append(middle(left + first * cell + count / 2, top - 36, label, 15, FORCED))
        if first:
            across, down = left + first * cell, top + first * cell
            parts.append(
                f'<path d="M{across} {top}V{top + size}M{left} {down}H{left + size}" '
                f'stroke="{INK}" stroke-width="1.5"/>'
            )
    parts.append(
        words(
            24, top + size + 34, "The text never sees a thought, and a thought never sees another."
        )
    )
    return drawing(left + size + 30, top + size + 54, "What each query sees", parts)


PICTURES = {"two_phases.svg": two_phases, "visibility.svg": visibility}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
