"""Real benchmark files and real checkpoints: the metrics again, by transformers and NumPy.

Nothing of the package is used for the expected side: prompts are put together from the files' own
fields, and each item's tokens are walked one by one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fqs_jax.evaluation.tasks import asking, commonsense_qa, gsm8k, items, piqa, social_iqa
from fqs_jax.evaluation.tasks import scores as scores_lib
from fqs_jax.runs import loading

FILES = {
    "csqa": (commonsense_qa.TASK, "csqa_dev_rand_split", 1221),
    "piqa": (piqa.TASK, "piqa_valid", 1838),
    "siqa": (social_iqa.task(), "siqa_dev", 1954),
    "gsm8k": (gsm8k.TASK, "gsm8k_test", 1319),
}
ALL = "FQS_ALL_ITEMS"  # set to compare every item of the files
BLANK = "\u2581"  # SentencePiece's blank
Ids = tuple[int, ...]
Table = dict[int, np.ndarray]  # log-probabilities [V] of what follows a position


class Asked(NamedTuple):
    """Text up to and with the colon, what follows it, and what might: letters, or nothing."""

    prompt: str
    answer: str
    letters: str


class Scores(NamedTuple):
    """The published product, correctness and -log p(right) of every item that fits."""

    prob_N: np.ndarray
    correct_N: np.ndarray
    nll_N: np.ndarray


def read_files(name: str, folder: Path) -> list[Asked]:
    """The published prompts, from the fields of the original files."""
    file = FILES[name][1]
    records = [json.loads(line) for line in (folder / f"{file}.jsonl").open(encoding="utf-8")]
    if name == "gsm8k":
        return [Asked(f"Q: {r['question']}\nA:", r["answer"].split("####")[1], "") for r in records]
    if name == "csqa":
        return [
            lettered(
                r["question"]["stem"],
                [choice["text"] for choice in r["question"]["choices"]],
                r["answerKey"],
            )
            for r in records
        ]
    labels = (folder / f"{file}-labels.lst").read_text().split()
    pairs = list(zip(records, labels, strict=True))
    if name == "piqa":
        return [lettered(r["goal"], [r["sol1"], r["sol2"]], "AB"[int(x)]) for r, x in pairs]
    return [
        lettered(
            r["context"] + r["question"],
            [r["answerA"], r["answerB"], r["answerC"]],
            " ABC"[int(x)],
        )
        for r, x in pairs
    ]


def lettered(question: str, options: list[str], right: str) -> Asked:
    letters = "ABCDE"[: len(options)]
    listed = "".join(f"({a}) {text}\n" for a, text in zip(letters, options, strict=True))
    return Asked(f"Q: {question}\n{listed}A:", f" {right}", letters)


def independent(folder: Path, asked: list[Asked], limit: int) -> Scores:
    """Walks the tokens behind the last colon; an item of more than `limit` tokens is left out."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [[1, *pieces.encode(f"{a.prompt}{a.answer}\n")] for a in asked]
    fitting = [n for n, ids in enumerate(texts) if len(ids) <= limit]
    paths = {
        n: [
            [1, *pieces.encode(f"{asked[n].prompt} {letter}\n")][:-1] for letter in asked[n].letters
        ]
        for n in fitting
    }
    read = {tuple(ids[:-1]) for n in fitting for ids in [texts[n], *paths[n]]}
    tables = log_probs(folder, sorted(read, key=len), pieces.piece_to_id(":"))
    scores = [score(asked[n], texts[n], paths[n], tables, pieces.piece_to_id) for n in fitting]
    return Scores(*map(np.array, zip(*scores, strict=True)))


def log_probs(folder: Path, contexts: list[Ids], colon_id: int) -> dict[Ids, Table]:
    """Log-probabilities of the token after each position of a context, from its last colon on."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)  # a model so small only waits for others
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tables = {}
    for start in range(0, len(contexts), 32):
        batch = contexts[start : start + 32]
        longest = len(batch[-1])
        rows = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in batch])
        with torch.no_grad():  # what stands behind a position does not reach it
            logits_BxTxV = theirs(rows).logits.double().numpy()
        for ids, logits_TxV in zip(batch, logits_BxTxV, strict=True):
            colon = last(ids, colon_id)
            some = logits_TxV[colon : len(ids)]
            some = some - np.logaddexp.reduce(some, axis=-1, keepdims=True)
            tables[ids] = dict(enumerate(some, start=colon))
    return tables


def last(ids: Sequence[int], wanted: int) -> int:
    return max(t for t, token in enumerate(ids) if token == wanted)


def score(
    question: Asked,
    ids: list[int],
    paths: list[list[int]],
    tables: dict[Ids, Table],
    piece_id: Callable[[str], int],
) -> tuple[float, bool, float]:
    """The scores of one item; a letter may have its blank if such a piece exists, as for B alone here."""
    colon = last(ids, piece_id(":"))
    symbols = [piece_id(BLANK + a) or piece_id(a) for a in question.letters]
    allowed = np.array([*(symbols or map(piece_id, "0123456789")), piece_id("<0x0A>")])
    table, prob, all_likeliest = tables[tuple(ids[:-1])], 1.0, True
    for t in range(colon + 1, len(ids)):
        if ids[t] not in allowed:
            continue
        weights = np.exp(table[t - 1][allowed])
        prob *= float(weights[allowed == ids[t]][0] / weights.sum())
        all_likeliest &= bool(ids[t] == allowed[weights.argmax()])
    if not paths:
        return prob, all_likeliest, -float(np.log(prob))
    totals = [
        sum(tables[tuple(path[:-1])][t - 1][path[t]] for t in range(colon + 1, len(path)))
        for path in paths
    ]
    right = question.letters.index(question.answer[-1])
    nll = float(np.logaddexp.reduce(totals) - totals[right])
    return prob, int(np.argmax(totals)) == right, nll


def check(shared: Path, family: str, name: str, chosen: slice) -> None:
    task, file, lines = FILES[name]
    files = shared / "real" / "benchmarks"
    folder = shared / "real" / "checkpoints" / f"stories260K-{family}"
    theirs = read_files(name, files)
    ours = items.read(task, str(files / f"{file}.jsonl"))
    assert len(ours) == len(theirs) == lines
    loaded = loading.load(str(folder))
    expected = independent(folder, theirs[chosen], loaded.model.max_seq_len)
    result = asking.evaluate(loaded, ours[chosen], asking.Settings())
    about: dict[str, Any] = {"stage": "", "model": "", "task": name, "too_long": result.too_long}
    row = scores_lib.row(result.plain, None, thoughts="none", **about)
    assert row.items == len(expected.prob_N) and row.items + row.too_long == len(ours[chosen])
    published, choices = result.plain
    found = Scores(
        np.exp(published.right_log_prob())[:, 0],
        choices.all_right()[:, 0],
        -choices.right_log_prob()[:, 0],
    )
    for metric, a, b in zip(Scores._fields, found, expected, strict=True):
        worst, mean = np.abs(a - 1.0 * b).max(), abs(a.mean() - b.mean())
        print(f"{family} {name} {metric}: greatest {worst:.1e}, of the mean {mean:.1e}")
        assert mean < 1e-4, metric
    np.testing.assert_allclose(found.prob_N, expected.prob_N, atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(found.nll_N, expected.nll_N, atol=1e-3)
    reported = (row.expected_prob, row.accuracy.value, row.nll)
    np.testing.assert_allclose(reported, [part.mean() for part in expected], atol=1e-4)


@pytest.mark.parametrize(
    "family, name, count",
    [("llama", name, 24) for name in FILES] + [("mistral", "csqa", 6), ("qwen2", "gsm8k", 6)],
)
def test_metrics_are_those_of_transformers(shared, family, name, count):
    check(shared, family, name, slice(count))


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_all_over_the_files(shared, name):
    """Every twentieth item, so that it is seconds; with FQS_ALL_ITEMS=1 all of them, in minutes."""
    check(shared, "llama", name, slice(None, None, None if os.environ.get(ALL) else 20))
