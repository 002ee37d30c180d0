"""A model that is loaded and ready to use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import sharding
from fqs_jax.thinking import config as config_lib


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
      thought: what its thoughts are; None for a model that does not think.
      source: folder of its config.json and tokenizer files.
      label: what it is, for people.
      mesh: the devices that its parameters lie on.
    """

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    thought: config_lib.ThoughtConfig | None
    source: Path
    label: str
    mesh: Mesh = dataclasses.field(default_factory=sharding.single_device)
