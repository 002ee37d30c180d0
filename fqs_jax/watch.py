"""Does a model that no longer thinks still do as well as its thinking teacher, on text of today?

The gap is the student's loss less the teacher's, in nats a token, on the same tokens. The models do
not change, so the gap of training time can be measured at any time, on text like that of training.
What is watched is the drift: the gap on fresh text less that one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fqs_jax import token_scores, workdir
from fqs_jax.data import corpus
from fqs_jax.errors import UserError
from fqs_jax.workdir import Loaded

LEAST_DOCUMENTS = 8  # fewer say nothing about an interval
RESAMPLINGS = 2000


@dataclasses.dataclass(frozen=True)
class Losses:
    """Sums over each of D documents: tokens scored, and both models' loss in nats."""

    tokens_D: np.ndarray
    teacher_D: np.ndarray
    student_D: np.ndarray

    @property
    def gap(self) -> float:
        """The student's loss less the teacher's, nats a token."""
        return float((self.student_D - self.teacher_D).sum() / self.tokens_D.sum())

    def resampled_gaps(self, rng: np.random.Generator) -> np.ndarray:
        """The gap of many samples of documents, drawn with replacement, as many as there are."""
        count = len(self.tokens_D)
        picked = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLINGS)
        return (picked @ (self.student_D - self.teacher_D)) / (picked @ self.tokens_D)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was measured; losses and gaps in nats a token, `drift` with its 95% interval.

    `retrain` if the drift is above the tolerance, even at the low end of the interval. `unsure` if it
    is not, but may be.
    """

    verdict: str
    unsure: bool
    drift: float
    drift_low: float
    drift_high: float
    tolerance: float
    gap: float
    gap_then: float
    teacher_nll: float
    student_nll: float
    documents: int
    documents_then: int
    tokens: int


def judge(fresh: Losses, then: Losses, tolerance: float) -> Verdict:
    """Compare two gaps, with a percentile bootstrap over the documents of both.

    Args:
      tolerance: a drift up to this many nats a token does not matter.

    Raises:
      UserError: too few documents.
    """
    for name, losses in (("fresh text", fresh), ("training-time text", then)):
        if len(losses.tokens_D) < LEAST_DOCUMENTS:
            raise UserError(
                f"the {name} has {len(losses.tokens_D)} documents, too few for an interval; give at "
                f"least {LEAST_DOCUMENTS} (a .txt file is one document, each line of a .jsonl file)"
            )
    rng = np.random.default_rng(0)  # the same text has the same interval
    drifts = fresh.resampled_gaps(rng) - then.resampled_gaps(rng)
    low, high = map(float, np.percentile(drifts, [2.5, 97.5]))
    tokens = int(fresh.tokens_D.sum())
    return Verdict(
        verdict="retrain" if low > tolerance else "keep",
        unsure=low <= tolerance < high,
        drift=fresh.gap - then.gap,
        drift_low=low,
        drift_high=high,
        tolerance=tolerance,
        gap=fresh.gap,
        gap_then=then.gap,
        teacher_nll=float(fresh.teacher_D.sum() / tokens),
        student_nll=float(fresh.student_D.sum() / tokens),
        documents=len(fresh.tokens_D),
        documents_then=len(then.tokens_D),
        tokens=tokens,
    )


def measure(
    teacher: Loaded,
    student: Loaded,
    documents: Sequence[str],
    seq_len: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Losses:
    """Both models' loss on every document; documents without a token to predict are left out.

    Raises:
      UserError: the two do not read text as the same tokens.
    """
    if teacher.thought is None:
        raise UserError(f"the teacher, {teacher.label}, does not think; name a thinking stage")
    sample = list(documents[:LEAST_DOCUMENTS])
    if teacher.tokenizer.encode_batch(sample) != student.tokenizer.encode_batch(sample):
        raise UserError("teacher and student have different tokenizers; name models of one run")
    seq_len = seq_len or min(
        token_scores.window(teacher), token_scores.window(student)
    )  # the same windows
    scores = [
        token_scores.score(loaded, documents, seq_len, batch_size, seed, progress=progress)
        for loaded in (teacher, student)
    ]
    number_N = scores[0].document_N
    tokens_D = np.bincount(number_N, minlength=len(documents))
    teacher_D, student_D = (
        np.bincount(number_N, -score.best_N.astype(np.float64), len(documents)) for score in scores
    )
    known = tokens_D > 0
    return Losses(tokens_D[known], teacher_D[known], student_D[known])


def training_text(root: Path, limit: int) -> list[str]:
    """Documents that a working directory was trained on, at most `limit`, spread evenly.

    Raises:
      UserError: the text is not there any more.
    """
    _, config = workdir.read_run(root, workdir.existing_stages(root)[0].number)
    sources = corpus.sources(config.data, config.seed)
    total = sum(len(source) for source, _ in sources)
    step = max(1.0, total / limit)
    return [
        text
        for source, _ in sources
        for i in range(int(np.ceil(len(source) / step)))
        if (text := source[int(i * step)]).strip()
    ]
