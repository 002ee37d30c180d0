"""Votes among chains of thought, with both parsers."""

import dataclasses
from decimal import Decimal

import pytest

from fqs_jax.evaluation.tasks import chain_of_thought
from fqs_jax.evaluation.tasks.chain_of_thought import Chain, Settings, count, sample, vote
from fqs_jax.evaluation.tasks.items import Item
from fqs_jax.runs import loading
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import hf_folder

ITEMS = [Item(f"Q: the cat saw {n}\nA:", f" {n}", (), "number") for n in (1, 20)]
SHORT = Settings(votes=3, max_new_tokens=4, prompt="{question} so", batch_size=6)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return loading.load(str(hf_folder(tmp_path_factory.mktemp("hf") / "model")))


def test_vote():
    assert vote([3, None, 4, 4, None]) == 4
    assert vote([5, 6, 6, 5]) == 5  # the first of the most frequent
    assert vote([None, None]) is None and vote([]) is None
    assert vote([Decimal("18"), Decimal("18.0"), Decimal("2")]) == 18


def test_what_is_counted():
    chains = {
        0: [Chain("it is 2", True), Chain("it is 1.", True), Chain("the answer is 1. Yes", True)],
        1: [Chain("it is 20. Good", True), Chain("none", False), Chain("it is 20", True)],
    }
    row = count(ITEMS + ITEMS, chains, stage="", model="", task="gsm8k")
    assert row.votes == 3 and row.items == 2 and row.too_long == 2
    assert row.majority.value == 1 and row.single == pytest.approx(4 / 6)
    # Published: 2, 1, 1 (a failure that is right by luck); then 1, 1 and 20.
    assert row.majority_published == 0.5 and row.single_published == pytest.approx(3 / 6)
    assert row.no_number == pytest.approx(1 / 6) and row.cut_off == pytest.approx(1 / 6)


def test_where_the_released_evaluation_stops():
    assert Chain("is 8\nQuestion: what is 9", False).published() == 8
    assert Chain("is 8 Question: what is 9", False).published() == 8
    # The token that stops it has a blank before it, and so deletes the answer.
    assert Chain("is 8. Question what is 9", True).published() == 1
    # A line break before the end mark, too; cut off at the same place, the answer stays.
    assert Chain("is 8.\n", True).published() == 1 and Chain("is 8.\n", False).published() == 8


def test_sampling(loaded):
    told = []
    chains = sample(loaded, ITEMS, SHORT, lambda *done: told.append(done))
    assert sorted(chains) == [0, 1] and all(len(own) == 3 for own in chains.values())
    assert len({chain.text for own in chains.values() for chain in own}) > 3
    assert told == [(2, 2)]
    assert sample(loaded, ITEMS, SHORT) == chains


def test_seeds_share_no_noise(loaded, monkeypatch):
    """Neither two batches of a seed, nor batches at other places of two seeds."""
    seeds = []

    def generate(loaded, prompts, count, *, seed, **settings):
        seeds.append(seed)
        return [chain_of_thought.generation.Generation("", [], [], [])] * len(prompts)

    monkeypatch.setattr(chain_of_thought.generation, "generate", generate)
    for seed in (0, 1, 2, 2**32 - 1):
        sample(loaded, ITEMS * 3, dataclasses.replace(SHORT, batch_size=3, seed=seed))
    assert len(seeds) == len(set(seeds)) == 24 and 0 <= min(seeds) <= max(seeds) < 2**32


def test_what_does_not_fit_is_counted(loaded):
    long = Item(f"Q: {'the cat saw ' * 30}\nA:", " 1", (), "number")
    chains = sample(loaded, [long, *ITEMS], SHORT)
    assert sorted(chains) == [1, 2]
    assert count([long, *ITEMS], chains, stage="", model="", task="").too_long == 1
    with pytest.raises(UserError, match="set --max_new_tokens lower"):
        sample(loaded, [long], SHORT)


def test_a_prompt_needs_a_place_for_the_question(loaded):
    with pytest.raises(UserError, match="must have {question} in it"):
        sample(loaded, ITEMS, Settings(prompt="so"))


def test_the_prompt_ends_as_published():
    assert chain_of_thought.PROMPT.endswith(
        "\nThe question is: {question}\nAnswer: Let's think step by step."
    )
