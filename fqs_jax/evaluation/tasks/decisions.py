"""Decisions between a few ids or choices, and their scores; NumPy in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Up to D decisions for each of N items and R thoughts, each between up to A options.

    log_probs_NxRxDxA: log-probabilities up to a constant for each decision, -inf where there is no
    option. target_NxD: the right option, -1 where there is no decision.
    """

    log_probs_NxRxDxA: np.ndarray
    target_NxD: np.ndarray

    @classmethod
    def of(cls, items: Sequence[tuple[Sequence[np.ndarray], Sequence[int]]]) -> Decisions:
        """Pad the decisions [R, A] and targets of each item to one shape."""
        R = items[0][0][0].shape[0]
        D = max(len(targets) for _, targets in items)
        A = max(decision.shape[-1] for decisions, _ in items for decision in decisions)
        log_probs = np.full((len(items), R, D, A), -np.inf)
        target_NxD = np.full((len(items), D), -1)
        for n, (decisions, targets) in enumerate(items):
            target_NxD[n, : len(targets)] = targets
            for d, decision in enumerate(decisions):
                log_probs[n, :, d, : decision.shape[-1]] = decision
        return cls(log_probs, target_NxD)

    def some(self, items: slice) -> Decisions:
        """The decisions of some of the items."""
        return Decisions(self.log_probs_NxRxDxA[items], self.target_NxD[items])

    def right_log_prob(self, temperature: float = 1.0) -> np.ndarray:
        """The log of the product of the right options' probabilities, [N, R]."""
        real_Nx1xD = self.target_NxD[:, None] >= 0
        scaled = np.where(real_Nx1xD[..., None], self.log_probs_NxRxDxA, 0.0) / temperature
        chosen = np.maximum(self.target_NxD, 0)[:, None, :, None]
        picked = np.take_along_axis(log_softmax(scaled, axis=-1), chosen, axis=-1)[..., 0]
        return np.where(real_Nx1xD, picked, 0.0).sum(-1)

    def all_right(self) -> np.ndarray:
        """True where the right option is the likeliest in every decision, bool [N, R]."""
        likeliest = self.log_probs_NxRxDxA.argmax(-1)
        return ((likeliest == self.target_NxD[:, None]) | (self.target_NxD[:, None] < 0)).all(-1)

    def single(self) -> tuple[np.ndarray, np.ndarray]:
        """All decisions one by one: log-probabilities [decisions, A] and targets [decisions]."""
        target_NxRxD = np.broadcast_to(self.target_NxD[:, None], self.log_probs_NxRxDxA.shape[:3])
        real = target_NxRxD >= 0
        return self.log_probs_NxRxDxA[real], target_NxRxD[real]
