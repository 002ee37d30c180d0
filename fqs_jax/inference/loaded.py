"""A loaded model, ready to use."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.inference import layerwise
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import sharding
from fqs_jax.thinking import config as config_lib


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
      thought: settings of its thoughts; None for a model that does not think.
      source: folder of its config.json and tokenizer files.
      label: its name for people.
      mesh: devices that hold its parameters.
    """

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    thought: config_lib.ThoughtConfig | None
    source: Path
    label: str
    mesh: Mesh = dataclasses.field(default_factory=sharding.single_device)

    @functools.cached_property
    def layers_apart(self) -> layerwise.Apart | None:
        """The decoder with a copy of each layer for plain generation, or None (inference/layerwise.py).

        It is made once and kept; a model that `dataclasses.replace` makes has none yet.
        """
        return layerwise.parameters(self.params["lm"], self.mesh)

    def thought_text(self, ids: Sequence[int]) -> str:
        """The text of a thought's tokens; of a thought that has none, its kind."""
        if self.thought is not None and not self.thought.has_words:
            return f"({self.thought.tokens})"
        return self.tokenizer.decode(ids)

    def with_thought(self, **settings: Any) -> Loaded:
        """The same model with other settings of its thoughts; a model without thoughts stays so."""
        if self.thought is None:
            return self
        return dataclasses.replace(self, thought=dataclasses.replace(self.thought, **settings))
