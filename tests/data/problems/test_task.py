"""Properties of every built-in task: splits, forms and their shares, tokens, configs."""

import collections
import dataclasses
import itertools
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from fqs_jax.data import corpus
from fqs_jax.data.problems.multiplication import Multiplication
from fqs_jax.data.problems.task import DOCUMENT_FIELDS, PROBLEM_FIELDS, SPLITS, Task
from fqs_jax.runtime.errors import UserError
from tests.data.problems import test_stories as stories

KINDS = list(corpus.TASKS.values())
kinds = pytest.mark.parametrize("kind", KINDS)
ONLY_DIRECT = {"worked": 0.0, "direct": 1.0, "chatter": 0.0}
some_settings = settings(max_examples=15, deadline=None)


def asked(prompt: str) -> str:
    """The problem of a prompt; of a story its numbers and operations, which many words can tell."""
    told = re.search(r"\w[.?] =$", prompt)  # only stories have a sentence's end behind a word
    return str(stories.problem(prompt)) if told else prompt


def parse(document: str) -> tuple[str, str | None, str | None]:
    """A document as (what is asked, what is between marker and answer, answer)."""
    prompt, *rest = document.split(" =")
    assert len(rest) in (1, 2)
    *shown, answer = [part.strip() for part in rest]
    assert not shown or shown[0].startswith(": ")
    return asked(f"{prompt} ="), shown[0][2:] if shown else None, answer or None


def answers_of(task: Task, *splits: str) -> dict[str, str]:
    """The answers of the problems of splits, by what is asked."""
    return {asked(prompt): answer for split in splits for prompt, answer in task.problems(split)}


@kinds
def test_no_problem_is_in_two_splits_and_none_is_left_out(kind):
    task = kind()
    prompts = {split: [prompt for prompt, _ in task.problems(split)] for split in SPLITS}
    every = [prompt for split in SPLITS for prompt in prompts[split]]
    assert len(set(every)) == len(every) == sum(map(task.num_problems, task.lengths))
    for split, share in (("test", task.test_share), ("validation", task.validation_share)):
        assert len(prompts[split]) == pytest.approx(share * len(every), abs=len(task.lengths))


@kinds
@some_settings
@given(data=st.data())
def test_documents_are_of_their_split_and_a_function_of_seed_and_index(kind, data):
    seed, index = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 10**9))
    split = data.draw(st.sampled_from(SPLITS))
    task = kind(seed=seed, unanswered=0.2)
    document = task.document(index, split)
    assert document == kind(seed=seed, unanswered=0.2).document(index, split)
    prompt, _, answer = parse(document)
    answers = answers_of(task, split)
    assert prompt in answers and answer in (None, answers[prompt])
    assert set(document.split()) <= set(task.symbols)


@kinds
def test_seeds_differ(kind):
    assert kind(seed=1).documents(5) != kind(seed=2).documents(5)
    assert kind(seed=1).problems("test") != kind(seed=2).problems("test")


@kinds
def test_fields_of_documents_leave_the_problems_as_they_are(kind):
    """A stage may override DOCUMENT_FIELDS: a held-out problem must stay held out."""
    assert {*DOCUMENT_FIELDS, *PROBLEM_FIELDS} == {f.name for f in dataclasses.fields(Task)}
    task, length = kind(), kind().lengths[0]
    for name in (*DOCUMENT_FIELDS, *PROBLEM_FIELDS):
        old = getattr(task, name)
        if name not in (changes := {"lengths": (length,), "seed": 1, "answered_share": 0.5}):
            changes[name] = not old if old is True else old + 1 / 8
        changed = dataclasses.replace(task, **{name: changes[name]})
        same = all(changed.problems(s, length) == task.problems(s, length) for s in SPLITS)
        assert same == (name in DOCUMENT_FIELDS), name


@kinds
def test_answers_of_a_length_have_equally_many_symbols_out_of_those_named(kind):
    task = kind()
    for length in task.lengths:
        answers = [answer.split() for _, answer in task.problems("test", length)]
        assert len(set(map(len, answers))) == 1
        assert {symbol for answer in answers for symbol in answer} <= set(task.answers)
    assert task.symbols[: len(task.answers)] == task.answers
    assert len(set(task.symbols)) == len(task.symbols)


@kinds
def test_all_that_can_be_written_is_made_of_the_symbols(kind):
    task = kind()
    used = {task.marker}
    for length in task.lengths:
        for number in range(task.num_problems(length)):
            prompt, work, answer = task.problem(length, number)
            used |= {*prompt.split(), *work, *answer.split()}
    for prompt, _ in itertools.chain(*map(task.problems, task.more_splits)):
        used |= set(prompt.split())
    unused = set(task.symbols) - used
    assert used <= set(task.symbols) and unused <= set(task.answers)


@kinds
def test_shares_of_the_forms(kind):
    task = kind(worked=4, direct=3, chatter=2, unanswered=1)
    # The work of a problem is what its worked document shows.
    work = {}
    for document in kind(worked=1, direct=0, chatter=0).documents(4000):
        prompt, shown, _ = parse(document)
        assert work.setdefault(prompt, shown) == shown is not None
    forms: collections.Counter[str] = collections.Counter()
    for document in task.documents(3000):
        prompt, shown, answer = parse(document)
        if shown is not None and prompt not in work:
            continue
        forms[
            "unanswered"
            if answer is None
            else "direct"
            if shown is None
            else "worked"
            if shown == work[prompt]
            else "chatter"
        ] += 1
    silent, direct = forms["unanswered"], forms["direct"]
    assert silent / 3000 == pytest.approx(0.1, abs=0.02)
    assert direct / 3000 == pytest.approx(0.3, abs=0.03)
    # Noise is the work by chance at times: at most at 1 of 2^lengths[0] problems.
    shown = forms["worked"] + forms["chatter"]
    assert forms["worked"] / shown == pytest.approx(2 / 3, abs=0.05)


@kinds
def test_shares_of_zero_change_nothing_and_noise_changes_direct_documents_alone(kind):
    plain, noisy = kind(), kind(label_noise=1.0)
    pairs = list(zip(plain.documents(400), noisy.documents(400), strict=True))
    changed = [(a, b) for a, b in pairs if a != b]
    assert changed and all(parse(document)[1] is None for pair in changed for document in pair)
    assert all(parse(a)[0] == parse(b)[0] for a, b in pairs)
    assert noisy.problems("test") == plain.problems("test")


@kinds
@pytest.mark.parametrize("label_noise", [0.0, 0.4, 1.0])
def test_share_of_noisy_labels(kind, label_noise):
    task = kind(**ONLY_DIRECT, label_noise=label_noise, lengths=kind().lengths[:1])
    answers = answers_of(task, *SPLITS)
    said = [parse(document) for document in task.documents(2000)]
    wrong = sum(answer != answers[prompt] for prompt, _, answer in said)
    symbols = len(next(iter(answers.values())).split())
    by_chance = len(task.answers) ** -symbols  # a random answer is right so often
    assert wrong / 2000 == pytest.approx(label_noise * (1 - by_chance), abs=0.04)


@kinds
def test_direct_documents_have_the_answered_problems_alone(kind):
    lengths = kind().lengths[:1]
    whole = kind(lengths=lengths, worked=0.5, direct=0.5)
    few = kind(lengths=lengths, worked=0.5, direct=0.5, answered_share=0.01)
    said = [list(map(parse, task.documents(3000))) for task in (whole, few)]
    direct, direct_of_few = ({prompt for prompt, work, _ in docs if work is None} for docs in said)
    assert len(direct_of_few) == math.ceil(0.01 * len(whole.problems("train"))) < len(direct)
    assert direct_of_few <= set(answers_of(whole, "train"))
    shown = [[each for each in docs if each[1] is not None] for docs in said]
    assert shown[0] == shown[1]  # all other documents stay as they were


@kinds
def test_random_answers_are_uniform(kind):
    task = kind(**ONLY_DIRECT, label_noise=1.0)
    answers = [parse(document)[2] or "" for document in task.documents(3000)]
    counts = collections.Counter(symbol for answer in answers for symbol in answer.split())
    expected = counts.total() / len(task.answers)
    assert set(counts) == set(task.answers)
    assert all(abs(count - expected) < 6 * expected**0.5 for count in counts.values())


@kinds
def test_chatter_ends_in_the_truth_unless_asked(kind):
    fields = {"worked": 0.0, "direct": 0.0, "chatter": 1.0}
    answers = answers_of(kind(), *SPLITS)
    for honest in (True, False):
        said = map(parse, kind(**fields, true_after_chatter=honest).documents(300))
        right = [answer == answers[prompt] for prompt, _, answer in said]
        assert all(right) if honest else not all(right)


@kinds
def test_unanswered_alone(kind):
    task = kind(worked=0, direct=0, chatter=0, unanswered=1)
    assert set(map(asked, task.documents(50))) <= set(answers_of(task, "train"))


@pytest.mark.parametrize("source", corpus.TASKS)
def test_the_config_has_the_defaults_of_the_task_and_its_symbols_are_tokens(source, tmp_path):
    c = common.get_config()
    c.data.source, c.data.num_documents = source, 100
    task = corpus.built_in_task(c.data, 3)
    assert task == corpus.TASKS[source](seed=3)
    fields = {field.name for field in dataclasses.fields(corpus.TASKS[source])}
    assert set(c.data[source]) == fields - {"seed"}
    copy = type(c)(json.loads(c.data.to_json()))  # tuples are lists now
    assert corpus.built_in_task(copy, 3) == task

    tokenizer = corpus.train_tokenizer(c.data, 3, tmp_path)
    assert tokenizer.vocab_size == len(task.symbols) + 3
    ids = dict(zip(task.symbols, tokenizer.encode(" ".join(task.symbols)), strict=True))
    assert len(set(ids.values())) == len(ids)
    for document in task.documents(50) + task.documents(50, "test"):
        assert tokenizer.encode(document) == [ids[symbol] for symbol in document.split()]
        assert tokenizer.decode(tokenizer.encode(document)) == document


@kinds
def test_chance_is_what_guesses_hit(kind):
    """One of all sequences of symbols that an answer may be is right; they are enumerated here."""
    task = kind()
    hits = []
    for length in task.lengths:
        size = len(task.problems("test", length)[0][1].split())
        hits.append(1 / sum(1 for _ in itertools.product(task.answers, repeat=size)))
    assert task.chance == pytest.approx(sum(hits) / len(hits))


def test_chance_by_hand():
    assert Multiplication(lengths=(1, 2)).chance == pytest.approx((1 / 100 + 1 / 10_000) / 2)
    assert corpus.TASKS["clock"](lengths=(1, 2, 3)).chance == 1 / 7


def test_text_is_no_task_and_other_sources_are_refused():
    data = common.get_config().data
    assert corpus.built_in_task(data, 0) is None
    data.source = "sudoku"
    with pytest.raises(
        UserError, match="data.source is 'sudoku'; choose from text, clock, chain, par"
    ):
        corpus.built_in_task(data, 0)


@kinds
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"lengths": ()}, "give at least one"),
        ({"lengths": (2.5,)}, "lengths are (2.5,); "),
        ({"lengths": (2.0,)}, "lengths are (2.0,); give at least one, each 1 or more"),
        ({"lengths": ("2",)}, "lengths are ('2',); "),
        ({"unanswered": -0.1}, "set none below 0"),
        ({"worked": 0, "direct": 0, "chatter": 0}, "not all to 0"),
        ({"label_noise": 1.5}, "label_noise is 1.5; set a probability from 0 to 1"),
        ({"label_noise": -0.1}, "label_noise is -0.1"),
        ({"answered_share": 0.0}, "answered_share is 0.0; set a share above 0"),
        ({"answered_share": 1.1}, "answered_share is 1.1"),
        ({"test_share": 0.95}, "change validation_share and test_share"),
    ],
)
def test_bad_fields(kind, fields, said):
    with pytest.raises(UserError) as caught:
        kind(**fields)
    assert said in str(caught.value) and "\n" not in str(caught.value)
