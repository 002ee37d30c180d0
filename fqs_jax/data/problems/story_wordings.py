"""The sentences of stories: those of every document, and those that only held-out problems have.

{p} and {q} are people, {s} things, {n} a number. All is told in the past tense, which fits one thing and
several.
"""

from __future__ import annotations

from typing import NamedTuple

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
PEOPLE = (
    *("Adam", "Alice", "Anna", "Ben", "Clara", "Daniel", "David", "Emily", "Emma", "Eric", "Henry"),
    *(
        "Jack",
        "Jane",
        "John",
        "Kate",
        "Lily",
        "Lucy",
        "Mark",
        "Mary",
        "Nina",
        "Paul",
        "Peter",
        "Sam",
    ),
    "Tom",
)
THINGS = (
    *("apples", "badges", "balls", "beads", "books", "buttons", "cakes", "candles", "cards"),
    *("coins", "cookies", "cups", "eggs", "flowers", "keys", "lemons", "marbles", "nuts", "pears"),
    *("pencils", "rings", "shells", "stamps", "toys"),
)


class Wordings(NamedTuple):
    """Ways to say each part of a story: how it begins, what happens, and what is asked."""

    opening: tuple[str, ...]
    plus: tuple[str, ...]
    minus: tuple[str, ...]
    double: tuple[str, ...]
    question: tuple[str, ...]


KNOWN = Wordings(
    opening=(
        "{p} had {n} {s}.",
        "{p} began the day with {n} {s}.",
        "In the bag of {p} there were {n} {s}.",
        "{p} once owned {n} {s}.",
    ),
    plus=(
        "{p} bought {n} more.",
        "{p} found {n} more.",
        "{q} gave {p} {n} more.",
        "{p} got {n} from {q}.",
        "Then {p} won {n} in a game.",
        "{p} picked up {n} others.",
        "{q} came and brought {n} more.",
        "{p} received {n} by mail.",
    ),
    minus=(
        "{p} gave {n} to {q}.",
        "{p} lost {n} on the way.",
        "{q} took {n} of them.",
        "{p} sold {n} at the market.",
        "Then {p} threw {n} away.",
        "{p} handed {n} over to {q}.",
        "{p} used up {n} of them.",
        "Someone stole {n} from {p}.",
    ),
    double=(
        "Then the number of {s} doubled.",
        "{q} gave {p} as many again.",
        "{p} bought as many again.",
        "Soon {p} had twice as many.",
    ),
    question=(
        "How many {s} did {p} have then?",
        "How many {s} were left?",
        "How many {s} does {p} have now?",
        "What is the number of {s} now?",
    ),
)

NEW = Wordings(
    opening=(
        "{p} came home with {n} {s}.",
        "On a shelf stood {n} {s} that belonged to {p}.",
    ),
    plus=(
        "{p} collected another {n} soon after.",
        "A neighbor sent {p} {n} as a present.",
        "{p} borrowed {n} from {q}.",
        "An hour later {n} extra arrived.",
    ),
    minus=(
        "An hour later {n} went missing.",
        "{p} dropped {n} into the river.",
        "Sadly {p} broke {n} by accident.",
        "{p} mailed {n} off to {q}.",
    ),
    double=(
        "The next day {p} had double that amount.",
        "{q} added the same amount once more.",
    ),
    question=(
        "Tell me how many {s} {p} ended up with.",
        "At last {p} counted the {s}; what was the total?",
    ),
)
