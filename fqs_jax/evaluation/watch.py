"""The check that a model without thoughts still does as well as its thinking teacher on fresh text.

The gap is the student's loss less the teacher's, in nats a token, on the same tokens. The models do
not change, so the gap at training time can be measured at any time, on text like the training text.
The drift is the gap on fresh text less the gap at training time. A teacher may know as little of a
text as its student, so the rise of the student's own loss is watched too (docs/evaluation.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fqs_jax.curriculum import resolve
from fqs_jax.data import corpus
from fqs_jax.data.sources.specification import Source
from fqs_jax.evaluation import statistics
from fqs_jax.evaluation import text as text_lib
from fqs_jax.evaluation.statistics import Interval
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import folders
from fqs_jax.runtime.errors import UserError

LEAST_DOCUMENTS = 8  # fewer give no useful interval


@dataclasses.dataclass(frozen=True)
class Losses:
    """Sums over each of D documents: tokens scored, and both models' loss in nats.

    Leading axes are several texts: from arrays [..., D] the losses below are arrays [...].
    """

    tokens_D: np.ndarray
    teacher_D: np.ndarray
    student_D: np.ndarray

    @property
    def teacher_nll(self) -> np.ndarray:
        """The teacher's loss, nats a token."""
        return self.teacher_D.sum(-1) / self.tokens_D.sum(-1)

    @property
    def student_nll(self) -> np.ndarray:
        """The student's loss, nats a token."""
        return self.student_D.sum(-1) / self.tokens_D.sum(-1)

    @property
    def gap(self) -> np.ndarray:
        """The student's loss less the teacher's, nats a token."""
        return (self.student_D - self.teacher_D).sum(-1) / self.tokens_D.sum(-1)

    def of(self, documents: np.ndarray) -> Losses:
        """The losses of these documents, by their numbers."""
        arrays = (self.tokens_D, self.teacher_D, self.student_D)
        return Losses(*(array_D[documents] for array_D in arrays))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The measurements, in nats a token, and the decision.

    Attributes:
      verdict: "retrain" if the whole interval of `drift` or `rise` is above its tolerance; else "keep".
      reason: "gap" if only the student fell behind: retrain it; "loss" if both models know less of this
        text: retrain teacher and student; "student" if its loss rose, and neither the drift nor the rise
        of the teacher's is certain; "" if the verdict is "keep".
      unsure: the verdict is "keep", but an interval reaches above its tolerance.
      drift: change of the gap since training time.
      rise: change of the student's loss since training time.
      gap, teacher_nll, student_nll, documents: of the fresh text; `_then`: of the text of training time.
      tokens: tokens scored in the fresh text.
    """

    verdict: str
    reason: str
    unsure: bool
    drift: Interval
    tolerance: float
    rise: Interval
    loss_tolerance: float
    gap: float
    gap_then: float
    teacher_nll: float
    teacher_nll_then: float
    student_nll: float
    student_nll_then: float
    documents: int
    documents_then: int
    tokens: int


def judge(fresh: Losses, then: Losses, tolerance: float, loss_tolerance: float = 0.5) -> Verdict:
    """Compare two texts, with a percentile bootstrap over the documents of both.

    Args:
      fresh, then: losses on fresh text and on text of training time.
      tolerance: the largest drift that is accepted, nats a token.
      loss_tolerance: the largest rise of the student's loss that is accepted, nats a token. It is
        large because other text of the same kind is harder or easier.

    Raises:
      UserError: too few documents, or a tolerance that is not finite.
    """
    check_count("fresh text", len(fresh.tokens_D))
    check_count("training-time text", len(then.tokens_D))
    check_tolerances(tolerance=tolerance, loss_tolerance=loss_tolerance)

    def interval(change: Callable[[Losses, Losses], np.ndarray]) -> Interval:
        """The bootstrap of a change from training time, over the documents of both texts."""
        return statistics.bootstrap(
            lambda today, before, axis: change(fresh.of(today), then.of(before)),
            np.arange(len(fresh.tokens_D)),
            np.arange(len(then.tokens_D)),
        )

    drift = interval(lambda today, before: today.gap - before.gap)
    rise = interval(lambda today, before: today.student_nll - before.student_nll)
    teacher_rise = interval(lambda today, before: today.teacher_nll - before.teacher_nll)
    behind, foreign = drift.low > tolerance, rise.low > loss_tolerance
    # A teacher that does not know the text either cannot teach it: retrain both.
    both = foreign and teacher_rise.low > loss_tolerance
    reason = "loss" if both else "gap" if behind else "student" if foreign else ""
    return Verdict(
        verdict="retrain" if reason else "keep",
        reason=reason,
        unsure=not reason and (drift.high > tolerance or rise.high > loss_tolerance),
        drift=drift,
        tolerance=tolerance,
        rise=rise,
        loss_tolerance=loss_tolerance,
        gap=float(fresh.gap),
        gap_then=float(then.gap),
        teacher_nll=float(fresh.teacher_nll),
        teacher_nll_then=float(then.teacher_nll),
        student_nll=float(fresh.student_nll),
        student_nll_then=float(then.student_nll),
        documents=len(fresh.tokens_D),
        documents_then=len(then.tokens_D),
        tokens=int(fresh.tokens_D.sum()),
    )


def check_tolerances(**tolerances: float) -> None:
    """Raises UserError if a tolerance is NaN or infinite: no drift is above those."""
    for name, value in tolerances.items():
        if not math.isfinite(value):
            raise UserError(f"{name} must be a finite number of nats a token, not {value}")


def check_count(name: str, documents: int) -> None:
    """Raises UserError if a text has too few documents for an interval."""
    if documents < LEAST_DOCUMENTS:
        raise UserError(
            f"the {name} has too few documents for an interval, {documents}; give at least "
            f"{LEAST_DOCUMENTS} (a .txt file is one document, each line of a .jsonl file is one)"
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

    Args:
      seq_len: tokens of a window, for both models; None = the shorter of their own windows.
      batch_size: windows in a batch.
      seed: seed of the teacher's thoughts.
      progress: called with (windows done, all windows); a window counts once for each model.

    Raises:
      UserError: the teacher does not think, the tokenizers differ, or a loss is not finite.
    """
    if teacher.thought is None:
        raise UserError(f"the teacher, {teacher.label}, does not think; name a thinking stage")
    ids = [[m.tokenizer.opening, *m.tokenizer.encode_batch(documents)] for m in (teacher, student)]
    if ids[0] != ids[1]:
        raise UserError("teacher and student have different tokenizers; name models of one run")
    seq_len = seq_len or min(text_lib.window(teacher), text_lib.window(student))
    scores = []
    for before, loaded in enumerate((teacher, student)):

        def report(done: int, total: int, before: int = before) -> None:
            progress(before * total + done, 2 * total)

        scores.append(text_lib.score(loaded, documents, seq_len, batch_size, seed, progress=report))
        scores[-1].check_finite(loaded.label)
    number_N = scores[0].document_N
    tokens_D = np.bincount(number_N, minlength=len(documents))
    teacher_D, student_D = (
        np.bincount(number_N, -score.best_RxN[0].astype(np.float64), len(documents))
        for score in scores
    )
    known = tokens_D > 0
    return Losses(tokens_D[known], teacher_D[known], student_D[known])


def training_text(root: Path, number: int, limit: int, download: bool = False) -> list[str]:
    """At most `limit` of the documents that a stage was trained on, evenly spread.

    Args:
      root: working directory of the stage.
      number: number of the stage.
      download: a dataset that is not here may be fetched.

    Raises:
      UserError: the text no longer exists, or it is a weighted mixture. Documents drawn evenly do not
        represent a mixture.
    """
    stage, config = folders.read_run(root, number)
    data = resolve.sections(config, stage).data
    data.download |= download
    tokenizer = folders.local_source(root)
    sources = corpus.sources(data, config.seed, tokenizer, download_flag="--download")
    if len(sources) > 1:
        raise UserError(f"it was trained on a weighted mixture, {data.text}")
    return spread(sources[0][0], limit)


def spread(documents: Source | Sequence[str], limit: int) -> list[str]:
    """At most `limit` documents, evenly spread, without the blank ones."""
    step = max(1.0, len(documents) / limit)
    chosen = (documents[int(i * step)] for i in range(min(limit, len(documents))))
    return [text for text in chosen if text.strip()]
