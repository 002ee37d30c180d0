"""Time of a generated token: one figure for each program, not for each model.

Models without thoughts run one compiled program, and so do models with equal thoughts. Timed one
after the other they would differ by whatever else the machine did meanwhile. So each program is timed
once, in rounds that alternate between the programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import jax
import numpy as np

from fqs_jax.inference import generation
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.thinking.config import ThoughtConfig

TOKENS = 24  # generated in each round
ROUNDS = 5


class Program(NamedTuple):
    """Everything that the compiled step of generation depends on, except the prompt."""

    model: ModelConfig
    thought: ThoughtConfig | None
    allowed_ids: int


class TokenTimes:
    """Collects the programs of models that are loaded one after the other, then times them.

    A program runs equally fast with any parameters of its shapes. So the language model's parameters
    are held once for each set of shapes, normally once in all: those of the last model added.
    """

    def __init__(self) -> None:
        self._loaded: dict[Program, Loaded] = {}  # one model a program; its "lm" is in _params
        self._shapes: dict[Program, Hashable] = {}
        self._params: dict[Hashable, Params] = {}

    def add(self, loaded: Loaded) -> Program:
        """Note a model's program; `milliseconds` has its time under this key."""
        program = Program(loaded.model, loaded.thought, loaded.tokenizer.vocab_size)
        lm = loaded.params["lm"]
        leaves, structure = jax.tree.flatten(lm)
        shapes = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        thought = {name: part for name, part in loaded.params.items() if name != "lm"}
        # Ids beyond the text's end count too: a model that stops early is not faster.
        tokenizer = dataclasses.replace(loaded.tokenizer, eos_id=None, other_ends=frozenset())
        self._loaded[program] = dataclasses.replace(loaded, params=thought, tokenizer=tokenizer)
        self._shapes[program], self._params[shapes] = shapes, lm
        return program

    def milliseconds(self, prompt: str) -> dict[Program, float]:
        """Time of a generated token behind one prompt, by program.

        The median over ROUNDS rounds, after one that compiles, of the median over a round's tokens.
        """
        rounds: dict[Program, list[float]] = {program: [] for program in self._loaded}
        models = {
            program: dataclasses.replace(
                loaded, params=loaded.params | {"lm": self._params[self._shapes[program]]}
            )
            for program, loaded in self._loaded.items()
        }
        for _ in range(1 + ROUNDS):
            for program, model in models.items():
                rounds[program].append(_median_seconds(model, prompt))
        return {program: float(np.median(times[1:])) * 1e3 for program, times in rounds.items()}


def _median_seconds(loaded: Loaded, prompt: str) -> float:
    seconds: list[float] = []
    generation.generate(
        loaded, [prompt], TOKENS, on_step=lambda emitted: seconds.append(emitted.seconds)
    )
    return float(np.median(seconds[1:]))  # the first step waits for the prompt to be read
