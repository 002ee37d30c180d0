"""The setting of each bracket that is best on validation items. Test items have no say in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fqs_jax.sweeps import brackets
from fqs_jax.sweeps.cells import Cell, by_variant
from fqs_jax.sweeps.variants import Setting

WORDS = {"accuracy": "accuracy", "nll": "NLL"}


class Score(NamedTuple):
    """A cell on validation items: accuracy, and NLL in nats. NaN = could not be measured."""

    accuracy: float
    nll: float


@dataclasses.dataclass(frozen=True)
class Tried:
    """A setting of a bracket.

    Attributes:
      setting: the setting.
      planned: number of seeds in the sweep.
      scores: one for each seed that is done.
    """

    setting: Setting
    planned: int
    scores: tuple[Score, ...]

    @property
    def is_complete(self) -> bool:
        """True if all seeds are done."""
        return len(self.scores) == self.planned

    @property
    def mean(self) -> Score:
        """Means over seeds; NaN if a seed could not be measured, or none is done."""
        if not self.scores:
            return Score(math.nan, math.nan)
        return Score(*map(float, np.mean(self.scores, axis=0)))


@dataclasses.dataclass(frozen=True)
class Choice:
    """The outcome of a bracket.

    Attributes:
      variant: name of the variant.
      judged: number of the stage that was compared.
      tried: all settings, as the sweep lists them.
      chosen: the best one; None while none is complete.
      is_at_edge: the best one is the least or greatest of the bracket.
      by: "accuracy" or "nll", which counts first.
    """

    variant: str
    judged: int
    tried: tuple[Tried, ...]
    chosen: Setting | None
    is_at_edge: bool
    by: str


def choose(
    cells: Sequence[Cell], scores: Sequence[Score | None], by: str = "accuracy"
) -> dict[str, Choice]:
    """The outcome of each variant that has a bracket, by its name.

    Args:
      scores: one for each cell, of the stage that is judged; None = not done.
      by: "accuracy" or "nll", which counts first.
    """
    outcomes: dict[str, Choice] = {}
    for variant, mine in by_variant(cells, scores).items():
        if not mine[0][0].setting:
            continue
        tried = []
        for setting in dict.fromkeys(cell.setting for cell, _ in mine):
            own = [score for cell, score in mine if cell.setting == setting]
            done = tuple(score for score in own if score is not None)
            tried.append(Tried(setting, len(own), done))
        chosen = best(tried, by)
        at_edge = chosen is not None and brackets.is_at_edge(chosen, [t.setting for t in tried])
        judged = mine[0][0].judged
        assert judged is not None  # of all cells with a setting
        outcomes[variant] = Choice(variant, judged, tuple(tried), chosen, at_edge, by)
    return outcomes


def best(tried: Sequence[Tried], by: str = "accuracy") -> Setting | None:
    """The setting with the highest mean accuracy; of equal ones the one with the lower NLL.

    Settings that lack a seed are left out, because means over other seeds cannot be compared, and so are
    those of which nothing could be measured. One of two measures that is missing is worse than any value.

    Args:
      by: "nll" = the lowest mean NLL; of equal ones the one with the higher accuracy.

    Returns:
      None if no setting is left.
    """
    complete = [t for t in tried if t.is_complete and not all(map(math.isnan, t.mean))]

    def rank(each: Tried) -> tuple[float, float]:
        accuracy, nll = each.mean
        more = -math.inf if math.isnan(accuracy) else accuracy
        less = -math.inf if math.isnan(nll) else -nll
        return (more, less) if by == "accuracy" else (less, more)

    return max(complete, key=rank).setting if complete else None


def shown(
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any] | None],
    choices: dict[str, Choice],
) -> list[tuple[Cell, dict[str, Any] | None]]:
    """The cells of the table with their results: those without a bracket, and those of chosen settings.

    A bracket without a choice is shown as not done, whatever its settings have: none of them is the
    variant's result.
    """
    kept = []
    for cell, result in zip(cells, results, strict=True):
        choice = choices.get(cell.variant)
        if choice is None or cell.setting == choice.chosen:
            kept.append((cell, result))
        elif choice.chosen is None and cell.setting == choice.tried[0].setting:
            kept.append((cell, None))
    return kept


def notes(choices: dict[str, Choice]) -> list[str]:
    """A sentence about each bracket: what was chosen, whether to widen it, what it still lacks."""
    found = []
    for choice in choices.values():
        missing = sum(each.planned - len(each.scores) for each in choice.tried)
        cells = sum(each.planned for each in choice.tried)
        if choice.chosen is None:
            sentence = "no setting of its bracket is done in all seeds, so none is chosen"
        else:
            mean = next(each.mean for each in choice.tried if each.setting == choice.chosen)
            sentence = (
                f"{brackets.text(choice.chosen)} was chosen of {len(choice.tried)} settings, by the "
                f"{WORDS[choice.by]} of stage {choice.judged} on validation items, "
                f"{getattr(mean, choice.by):.3f}"
            )
        if choice.is_at_edge:
            sentence += "; warning: it lies at the edge of its bracket, so widen that"
        if missing:
            sentence += f"; unfinished: {missing} of {cells} cells are not done"
        found.append(f"{choice.variant}: {sentence}")
    return found


def as_json(choice: Choice) -> dict[str, Any]:
    """An outcome with the values of every seed, for JSON."""
    settings = [
        {
            "setting": list(each.setting),
            "chosen": each.setting == choice.chosen,
            "planned": each.planned,
            "validation_accuracy": [score.accuracy for score in each.scores],
            "validation_nll": [score.nll for score in each.scores],
            "validation_accuracy_mean": each.mean.accuracy,
            "validation_nll_mean": each.mean.nll,
        }
        for each in choice.tried
    ]
    return {
        "variant": choice.variant,
        "judged_stage": choice.judged,
        "chosen_by": choice.by,
        "is_at_edge": choice.is_at_edge,
        "settings": settings,
    }
