"""The measures of a model on every item of a benchmark, and on every document of held-out text."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fqs_jax.evaluation import comparison
from fqs_jax.evaluation import text as text_lib
from fqs_jax.evaluation.tasks import asking, items, known, option_texts, scores
from fqs_jax.evaluation.tasks.asking import Answers
from fqs_jax.evaluation.tasks.items import Cloze, Item
from fqs_jax.evaluation.tasks.option_texts import Likelihoods
from fqs_jax.inference.loaded import Loaded
from fqs_jax.inference.readings import Advance
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.progress import Progress
from fqs_jax.sweeps.fields import Benchmark

HELD_OUT = "held-out text"  # where others have the name of a benchmark
_WINDOWS = 8  # of held-out text in a batch


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that was measured.

    Attributes:
      stage: number of its stage; "init" = the checkpoint.
      name: of the stage, or "base".
      kind: as `evaluation.comparison.Row` has it.
      thoughts: "none", or the number of sampled thoughts that were averaged.
      tempered: each measure has the temperature that is best for it on the other half of the items.
    """

    stage: str
    name: str
    kind: str
    thoughts: str = "none"
    tempered: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The measures of one model on N items of one benchmark; means over its thoughts.

    Attributes:
      benchmark: its name; HELD_OUT = the items are documents.
      digest: of all items, equal only for equal ones.
      items_N: numbers of the items that fit into the model, from 0.
      weights_N: of the items in means: 1, or the tokens of documents.
      measures: values [N] by name, of these five those that the benchmark has. expected_p: the published
        probability; accuracy, by_characters, by_tokens: 1 for a right answer, by the text's whole
        likelihood or after it is divided by a length; nll: -log p(right answer), or nats a token.
    """

    benchmark: str
    digest: str
    model: Model
    items_N: np.ndarray
    weights_N: np.ndarray
    measures: dict[str, np.ndarray]

    def mean(self, measure: str, chosen_N: np.ndarray | slice = slice(None)) -> float:
        """The weighted mean of a measure over some of the items."""
        return float(np.average(self.measures[measure][chosen_N], weights=self.weights_N[chosen_N]))


def read_items(benchmark: Benchmark) -> list[Item] | list[Cloze]:
    """The items of a benchmark.

    Raises:
      UserError: the file is missing or malformed; the message names the benchmark.
    """
    given = (benchmark.file, benchmark.labels_file, benchmark.limit)
    try:
        if benchmark.scoring == "text":
            return items.read(known.TEXTS[benchmark.task], *given)
        return items.read(known.published(benchmark.task), *given)
    except (UserError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise UserError(f"benchmark {benchmark.name}: {reason}") from error


def on_benchmark(
    loaded: Loaded, model: Model, benchmark: Benchmark, asked: list[Item] | list[Cloze]
) -> list[Outcome]:
    """The outcomes of a model without thoughts, with thoughts if it thinks, and of a base at its best
    temperature, measured as `evaluate --task` does.

    Args:
      asked: the benchmark's items.

    Raises:
      UserError: no item fits, the tokenizer cannot write the answers, or the model is broken.
    """
    settings = asking.Settings(
        thought_seeds=benchmark.thought_seeds,
        seed=benchmark.seed,
        batch_size=benchmark.batch_size,
    )
    measured: list[tuple[Model, dict[str, np.ndarray]]] = []
    thinking = dataclasses.replace(model, thoughts=str(benchmark.thought_seeds))
    tempered = dataclasses.replace(model, tempered=True)
    with Progress(f"{model.name}, {benchmark.name}: rows", 0, 0) as bar:
        answered, found = _answers(loaded, benchmark, asked, settings, bar.advance_to)
    plain, after_thoughts = found
    measured.append((model, _measures(plain)))
    if after_thoughts is not None:
        measured.append((thinking, _measures(after_thoughts)))
    elif model.stage == "init" and len(answered) > 1:
        measured.append((tempered, _measures(plain) | _tempered(plain)))
    items_N = np.array(answered)
    return [
        Outcome(benchmark.name, digest(asked), each, items_N, np.ones(len(items_N)), values)
        for each, values in measured
    ]


def _answers(
    loaded: Loaded,
    benchmark: Benchmark,
    asked: list[Any],
    settings: asking.Settings,
    advance: Advance,
) -> tuple[list[int], tuple[Answers | Likelihoods, Answers | Likelihoods | None]]:
    """Numbers of the items that fit, and the answers without and with thoughts."""
    if benchmark.scoring == "text":
        texts = option_texts.evaluate(loaded, asked, settings, advance)
        return texts.answered, (texts.plain, texts.thinking)
    letters = asking.evaluate(loaded, asked, settings, advance)
    return letters.answered, (letters.plain, letters.thinking)


def _measures(answers: Answers | Likelihoods) -> dict[str, np.ndarray]:
    """The values [N] of every measure, averaged over thoughts."""
    if isinstance(answers, Likelihoods):
        return {
            "accuracy": answers.total.all_right().mean(axis=1),
            "by_characters": answers.by_characters.all_right().mean(axis=1),
            "by_tokens": answers.by_tokens.all_right().mean(axis=1),
            "nll": -answers.total.right_log_prob().mean(axis=1),
        }
    return {
        "expected_p": np.exp(answers.published.right_log_prob()).mean(axis=1),
        "accuracy": answers.choices.all_right().mean(axis=1),
        "nll": -answers.choices.right_log_prob().mean(axis=1),
    }


def _tempered(answers: Answers | Likelihoods) -> dict[str, np.ndarray]:
    """The measures that a temperature changes, each at the one that is best for it on the other half."""
    chosen = answers.total if isinstance(answers, Likelihoods) else answers.choices
    log_prob_NxR, _ = scores.scaled_by_halves(chosen, scores.least_nll_temperature)
    changed = {"nll": -log_prob_NxR.mean(axis=1)}
    if isinstance(answers, Answers):
        sharp_NxR, _ = scores.scaled_by_halves(answers.published, scores.highest_temperature)
        changed["expected_p"] = np.exp(sharp_NxR).mean(axis=1)
    return changed


def on_text(loaded: Loaded, model: Model, documents: Sequence[str], seq_len: int) -> list[Outcome]:
    """The same on held-out text: the loss of every document in nats a token.

    Args:
      seq_len: tokens of a window.
    """
    is_base = model.stage == "init" and loaded.thought is None
    temperatures = comparison.TEMPERATURES if is_base else ()
    with Progress(f"{model.name}, {HELD_OUT}: windows", 0, 0) as bar:
        found = text_lib.score(
            loaded, documents, seq_len, _WINDOWS, temperatures=temperatures, progress=bar.advance_to
        )
    found.check_finite(loaded.label)
    losses = [(model, -found.plain_N.astype(np.float64))]
    if len(found.thinking_RxN):
        nll_N = -found.thinking_RxN.mean(axis=0, dtype=np.float64)
        losses.append((dataclasses.replace(model, thoughts="1"), nll_N))
    if is_base:
        nll_N, chosen = comparison.at_best_temperature(found)
        if chosen:
            losses.append((dataclasses.replace(model, tempered=True), nll_N))
    tokens_D = np.bincount(found.document_N)
    full_D = np.flatnonzero(tokens_D)  # a document of one token has nothing to predict
    outcomes = []
    for each, nll_N in losses:
        sums_D = np.bincount(found.document_N, weights=nll_N)
        measures = {"nll": sums_D[full_D] / tokens_D[full_D]}
        weights_D = tokens_D[full_D].astype(float)
        outcomes.append(Outcome(HELD_OUT, digest(documents), each, full_D, weights_D, measures))
    return outcomes


def digest(asked: Sequence[object]) -> str:
    """A digest of items or documents."""
    return hashlib.sha256(repr(list(asked)).encode(errors="backslashreplace")).hexdigest()[:16]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome for JSON; `from_json` reads it."""
    return {
        "benchmark": outcome.benchmark,
        "digest": outcome.digest,
        **dataclasses.asdict(outcome.model),
        "items": outcome.items_N.tolist(),
        "weights": outcome.weights_N.tolist(),
        "measures": {name: values.tolist() for name, values in outcome.measures.items()},
    }


def from_json(fields: dict[str, Any]) -> Outcome:
    """The outcome of `as_json`.

    Raises:
      KeyError, TypeError, ValueError: it is none.
    """
    model = Model(**{field.name: fields[field.name] for field in dataclasses.fields(Model)})
    measures = {name: np.array(values, float) for name, values in fields["measures"].items()}
    items_N, weights_N = np.array(fields["items"], int), np.array(fields["weights"], float)
    return Outcome(fields["benchmark"], fields["digest"], model, items_N, weights_N, measures)
