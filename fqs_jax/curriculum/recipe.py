"""The recipe of a stage: everything its training is a function of, resolved once."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from fqs_jax.curriculum.stage import Stage
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.lora import Lora
from fqs_jax.thinking.config import ThoughtConfig


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Measurements of a stage on text that it is not trained on; off by default.

    Attributes:
      every: steps between two measurements; 0 = never.
      text: as data.text; empty for a built-in task, whose validation problems are read.
      rows: rows of the text.
      keep_best: the step with the lowest loss is saved and kept.
    """

    every: int = 0
    text: str = ""
    rows: int = 64
    keep_best: bool = True


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One stage, ready to train: the config with the stage's own overrides applied.

    Attributes:
      stage: the row; the steps of a control are worked out.
      model: the network.
      lora: the adapters that are trained beside a frozen decoder; None = the decoder is trained.
      thought: the thoughts of a thinking stage; None for a stage that does not think.
      objective: the objective's own settings, such as a `QuietStarConfig`; None if it has none.
      data: the section `data` of the config.
      optimizer: the section `optimizer` of the config.
      batch_size: sequences in a step.
      microbatches: parts of a batch that go through the network one after the other.
      eval_temperature: sampling temperature of a teacher's thoughts.
      seed: seed of all randomness.
      held_out: the loss on other text while it trains.
    """

    stage: Stage
    model: ModelConfig
    lora: Lora | None
    thought: ThoughtConfig | None
    objective: Any
    data: ml_collections.ConfigDict
    optimizer: ml_collections.ConfigDict
    batch_size: int
    microbatches: int
    eval_temperature: float
    seed: int
    held_out: HeldOut = HeldOut()

    @property
    def seq_len(self) -> int:
        """T, tokens of a training row."""
        return self.data.seq_len

    @property
    def talk_steps(self) -> int:
        """A, tokens predicted at a position: after a thought, or 1 without thoughts."""
        return self.thought.n_ahead_talk if self.thought else 1
