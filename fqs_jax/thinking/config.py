"""The shape of a thought and how it is mixed into the prediction."""

from __future__ import annotations

import dataclasses

from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import talk_head

TOKENS = ("sampled", "random", "pause", "latent")


@dataclasses.dataclass(frozen=True)
class ThoughtConfig:
    """The shape of thoughts and their mixing into the prediction; defaults are the published ones.

    Attributes:
      n_ahead: passes up to the first prediction made with the thought; K = n_ahead - 3 sampled tokens.
      n_ahead_talk: A, predictions scored after each thought, teacher-forced.
      rationales: R, thoughts sampled at every position.
      mixing: `linear` mixes hidden states with an unbounded weight (published), `sigmoid` the same
        with the weight squashed, `probability` mixes the two predicted distributions.
      mixing_bias: added before the sigmoid, so that mixing starts at sigmoid(mixing_bias); unused
        by `linear`, which starts at 0.
      embedding_scale: the marks are stored divided by it and used multiplied by it, which makes
        their learning rate under Adam that many times larger.
      temperature: for sampling thought tokens; 0 takes the likeliest.
      reinforce_temperature: temperature at which their log-probabilities are scored.
      masked_ids: vocabulary ids that are never drawn as thought tokens.
      tokens: what is between the marks: tokens `sampled` from the model (published); two controls,
        `random` tokens, drawn uniformly, and one learned `pause` embedding, K times (Goyal et al.,
        arXiv 2310.02226); or K `latent` states (thinking/latent.py). The last two have no tokens, and
        stand as id 0 in arrays of tokens.
    """

    n_ahead: int
    n_ahead_talk: int = 1
    rationales: int = 2
    mixing: str = "linear"
    mixing_bias: float = 0.0
    embedding_scale: float = 100.0
    temperature: float = 1.0
    reinforce_temperature: float = 3.0
    masked_ids: tuple[int, ...] = ()
    tokens: str = "sampled"

    def __post_init__(self) -> None:
        if self.n_ahead < 4:
            raise UserError(
                f"n_ahead {self.n_ahead} leaves no sampled token; it must be at least 4"
            )
        if self.n_ahead_talk < 1 or self.rationales < 1:
            raise UserError("n_ahead_talk and rationales must be at least 1")
        if self.mixing not in talk_head.KINDS:
            raise UserError(f"mixing {self.mixing!r} is none of {', '.join(talk_head.KINDS)}")
        if self.tokens not in TOKENS:
            raise UserError(f"tokens {self.tokens!r} is none of {', '.join(TOKENS)}")

    @property
    def num_tokens(self) -> int:
        """K, the number of tokens between the marks."""
        return self.n_ahead - 3

    @property
    def has_words(self) -> bool:
        """True if the ids of a thought's tokens mean anything."""
        return self.tokens in ("sampled", "random")

    @property
    def head_reads(self) -> int:
        """Reads of the output head for the tokens of a thought; only sampled ones need it."""
        return self.num_tokens if self.tokens == "sampled" else 0

    @property
    def num_slots(self) -> int:
        """M, the number of slots of a block: start, K tokens, end, A - 1 forced tokens."""
        return self.num_tokens + 1 + self.n_ahead_talk


@dataclasses.dataclass(frozen=True)
class Thinker:
    """A model and the thoughts that it has: all that is static about a thinking forward pass."""

    model: ModelConfig
    thought: ThoughtConfig
