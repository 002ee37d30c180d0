"""Stories: read by an interpreter of this test's own, and their splits by what the sentences say."""

import collections
import hashlib
import itertools
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fqs_jax.data.problems.stories import Stories
from fqs_jax.data.problems.story_wordings import PEOPLE, THINGS
from fqs_jax.data.problems.task import SPLITS
from fqs_jax.runtime.errors import UserError
from tests.conftest import REPO

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
VALUES = {word: value for value, word in enumerate(WORDS)}
ALL_SPLITS = (*SPLITS, "new_wording")
# What a sentence says of the person M whom the story is about, once people, things and numbers are replaced.
BEGINS = r"M (had|began the day with|once owned|came home with) N THINGS"
BEGINS += "|In the bag of M there were N THINGS|On a shelf stood N THINGS that belonged to M"
MORE = r"M (bought|found) N more|M picked up N others|O (came and brought|gave M) N more|M got N from O"
MORE += "|Then M won N in a game|M received N by mail|M collected another N soon after"
MORE += "|A neighbor sent M N as a present|M borrowed N from O|An hour later N extra arrived"
LESS = r"M (gave|mailed) N (off )?to O|M handed N over to O|M lost N on the way|O took N of them"
LESS += "|M sold N at the market|Then M threw N away|M used up N of them|Someone stole N from M"
LESS += "|An hour later N went missing|M dropped N into the river|Sadly M broke N by accident"
TWICE = "Then the number of THINGS doubled|O gave M as many again|M bought as many again"
TWICE += "|Soon M had twice as many|The next day M had double that amount"
TWICE += "|O added the same amount once more"
ASKS = (
    r"How many THINGS (did M have then|were left|does M have now)|What is the number of THINGS now"
)
ASKS += "|Tell me how many THINGS M ended up with|At last M counted the THINGS; what was the total"


def retold(sentence: str, main: str) -> str:
    """A sentence without its names, things and numbers: a wording."""
    sentence = re.sub(rf"\b{main}\b", "M", sentence)
    sentence = re.sub(rf"\b({'|'.join(PEOPLE)})\b", "O", sentence)
    sentence = re.sub(rf"\b({'|'.join(THINGS)})\b", "THINGS", sentence)
    return re.sub(rf"\b({'|'.join(WORDS)})\b", "N", sentence)


def sentences(prompt: str) -> tuple[str, list[str]]:
    """The person whom a story is about, and its sentences without the point at their end."""
    assert prompt.endswith((". =", "? ="))
    parts = re.split(r"[.?] ", prompt.removesuffix("="))[:-1]
    [main] = re.findall(rf"\b({'|'.join(PEOPLE)})\b", parts[0])
    return main, parts


def wordings(prompt: str) -> set[str]:
    main, parts = sentences(prompt)
    return {retold(part, main) for part in parts}


def trace(prompt: str) -> list[int]:
    """The number at the start and after each change, as the sentences tell it."""
    main, (begin, *changes, question) = sentences(prompt)
    numbers = [[VALUES[w] for w in re.findall(r"\w+", part) if w in VALUES] for part in changes]
    assert re.fullmatch(BEGINS, retold(begin, main)), begin
    assert re.fullmatch(ASKS, retold(question, main)), question
    assert len({word for word in re.findall(r"\w+", prompt) if word in THINGS}) == 1
    values = [next(VALUES[word] for word in begin.split() if word in VALUES)]
    for part, found in zip(changes, numbers, strict=True):
        wording, now = retold(part, main), values[-1]
        if re.fullmatch(TWICE, wording):
            assert not found and now > 0
            values.append(2 * now)
        else:
            [number] = found
            more, less = re.fullmatch(MORE, wording), re.fullmatch(LESS, wording)
            assert (more is None) != (less is None) and number >= 1, part
            values.append(now + number if more else now - number)
    return values


@pytest.fixture(scope="module")
def told() -> dict[str, list[tuple[str, str]]]:
    """All problems of two changes, by split."""
    return {split: Stories().problems(split) for split in ALL_SPLITS}


def test_every_answer_is_what_happens(told):
    for prompt, answer in itertools.chain(*told.values()):
        values = trace(prompt)
        assert len(values) == 3 and values[-1] == VALUES[answer], prompt
        assert 0 <= min(values) and max(values) <= 20 and 2 <= values[0] <= 9


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 100), st.integers(0, 10**6), st.sampled_from(SPLITS), st.sampled_from((2, 3, 4))
)
def test_the_work_leads_to_the_answer(seed, index, split, length):
    fields = {"seed": seed, "lengths": (length,), "worked": 1, "direct": 0, "chatter": 0}
    document = Stories(**fields, work="values").document(index, split)
    prompt, work, answer = document.split(" = ")
    values = trace(f"{prompt} =")
    assert work == ": " + " ".join(WORDS[value] for value in values[1:])
    assert answer == WORDS[values[-1]]

    shown = Stories(**fields).document(index, split)
    assert shown.startswith(f"{prompt} = : ") and shown.endswith(f" = {answer}")
    before = values[0]
    for equation, value in zip(shown.split(" = ")[1][2:].split(" , "), values[1:], strict=True):
        left, sign, right, equals, result = equation.split()
        a, b, c = VALUES[left], VALUES[right], VALUES[result]
        assert equals == "is" and (a, c) == (before, value)
        assert {"plus": a + b, "minus": a - b, "times": a * b}[sign] == c
        before = c


def test_every_sequence_that_stays_in_range_is_a_problem_once(told):
    """Operations written out: a start of 2 to 9, then twice any of +1..+9, -1..-9, *2 of 0 to 20."""
    expected = set()
    for start in range(2, 10):
        for first in range(21):
            for second in range(21):
                ways = [
                    ([b - a] if 1 <= abs(b - a) <= 9 else []) + ([0] if b == 2 * a > 0 else [])
                    for a, b in ((start, first), (first, second))
                ]
                expected |= {(start, first, second, *way) for way in itertools.product(*ways)}
    found = [problem(prompt) for split in SPLITS for prompt, _ in told[split]]
    assert len(found) == len(set(found)) and set(found) == expected


def problem(prompt: str) -> tuple[int, ...]:
    """Its values, and its changes as numbers: 0 for a double."""
    main, (_, *changes, _) = sentences(prompt)
    values = trace(prompt)
    doubled = [re.fullmatch(TWICE, retold(part, main)) for part in changes]
    pairs = zip(doubled, itertools.pairwise(values), strict=True)
    return (*values, *(0 if twice else b - a for twice, (a, b) in pairs))


@pytest.mark.parametrize("largest", [9, 12])
def test_no_number_is_too_large(largest):
    task = Stories(largest=largest)
    for split in ALL_SPLITS:
        for prompt, answer in task.problems(split):
            assert max(trace(prompt)) <= largest and answer in task.answers
    assert task.answers == tuple(WORDS[: largest + 1]) and task.chance == 1 / (largest + 1)


def test_new_wordings_tell_the_problems_of_test_in_sentences_of_their_own(told):
    for (prompt, answer), (other, same) in zip(told["test"], told["new_wording"], strict=True):
        assert answer == same and problem(prompt) == problem(other)
        people = [re.findall(rf"\b({'|'.join(PEOPLE)})\b", text) for text in (prompt, other)]
        things = [re.findall(rf"\b({'|'.join(THINGS)})\b", text) for text in (prompt, other)]
        assert people[0][0] == people[1][0] and things[0][0] == things[1][0]
    task = Stories(lengths=(2, 3, 4), unanswered=0.2, chatter=0.2, test_share=0.01)
    known = {
        wording
        for split in SPLITS
        for document in task.documents(1000, split)
        for wording in wordings(document[: document.index("=") + 1])
    }
    new = {wording for prompt, _ in told["new_wording"] for wording in wordings(prompt)}
    assert not known & new
    assert len(known) == 4 + 8 + 8 + 4 + 4 and len(new) == 2 + 4 + 4 + 2 + 2
    with pytest.raises(UserError, match="no split 'new_wording' exists"):
        task.document(0, "new_wording")


def test_every_document_tells_its_problem_anew():
    """The sentences of a document, and its names, say nothing of which problem it is."""
    task = Stories(largest=9, unanswered=1.0, worked=0.0, direct=0.0, chatter=0.0)
    tellings = collections.defaultdict(list)
    for prompt in task.documents(8000):
        tellings[problem(prompt)].append(prompt)
    several = [told for told in tellings.values() if len(told) >= 10]
    assert len(several) > 300
    for told in several:
        assert len(set(told)) == len(told)
        assert len({sentences(prompt)[0] for prompt in told}) > 3  # the person
        assert len({tuple(sorted(wordings(prompt))) for prompt in told}) > 3


def test_a_problem_is_always_asked_alike():
    """The shares of the documents have no say in it."""
    for split in ALL_SPLITS:
        assert Stories(worked=0.1).problems(split) == Stories(answered_share=0.5).problems(split)


def test_lengths_choose_among_the_new_wordings():
    task = Stories(lengths=(2, 3), test_share=0.01)
    both = task.problems("new_wording")
    assert both == task.problems("new_wording", 2) + task.problems("new_wording", 3)
    assert task.problems("new_wording", 2) == Stories(test_share=0.01).problems("new_wording")


def test_another_process_tells_the_same():
    """Whatever the order of its sets."""
    program = (
        "import hashlib; from fqs_jax.data.problems.stories import Stories; s = Stories(seed=4); "
        "told = [s.documents(50), s.problems('new_wording')[:50], s.symbols]; "
        "print(hashlib.sha256(repr(told).encode()).hexdigest())"
    )
    task = Stories(seed=4)
    told = [task.documents(50), task.problems("new_wording")[:50], task.symbols]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPO,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(repr(told).encode()).hexdigest()


def test_bad_fields():
    with pytest.raises(UserError, match=r"lengths are \(5,\); stories have 2, 3 or 4 changes"):
        Stories(lengths=(5,))
    with pytest.raises(UserError, match="largest is 21; set 9 to 20"):
        Stories(largest=21)
    with pytest.raises(UserError, match="work is 'poems'; choose from values, equations"):
        Stories(work="poems")
