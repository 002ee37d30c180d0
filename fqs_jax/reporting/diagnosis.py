"""The effect of thoughts on each token of a text, and signs of collapse: the numbers of the report."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.data.rows import windows
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import thoughts as thoughts_lib
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.thoughts import Scores

ROWS, BATCH_TOKENS = 8, 1024  # documents and positions of a batch at most
LENGTHS = 32  # documents are padded to a multiple of this, so that few programs are compiled
ENOUGH = 0.9  # the used length of a thought is the shortest with this share of the whole gain
MOST_FREQUENT = 10
# Thoughts have collapsed if one thought has a larger share, or the mean entropy (nats) or weight is lower.
SAME_SHARE, LOW_ENTROPY, LOW_WEIGHT = 0.5, 0.05, 0.01


@dataclasses.dataclass(frozen=True)
class Thought:
    """One sampled thought before a token; `gain` is the nats by which it made the token likelier."""

    text: str
    weight: float
    gain: float


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of the text.

    Attributes:
      base: log p without thoughts; None for a first token that nothing predicts.
      thoughts: independent samples.
    """

    text: str
    base: float | None = None
    thoughts: tuple[Thought, ...] = ()

    @property
    def gain(self) -> float:
        """Nats by which a thought made this token likelier, mean over the samples."""
        return float(np.mean([thought.gain for thought in self.thoughts]))

    @property
    def weight(self) -> float:
        """Mixing weight, mean over the samples."""
        return float(np.mean([thought.weight for thought in self.thoughts]))

    @property
    def mixed(self) -> float:
        """log p with a thought, mean over the samples."""
        assert self.base is not None
        return self.base + self.gain


@dataclasses.dataclass(frozen=True)
class Frequent:
    """A frequent thought, with its share of all thoughts and its mean gain in nats."""

    text: str
    share: float
    gain: float


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """Statistics of all thoughts on the shown text.

    Attributes:
      gain, gain_error: mean over tokens in nats and its standard error; > 0 = thoughts help.
      helped: share of tokens that thoughts made likelier.
      weight: mean mixing weight.
      length: K, tokens of a thought.
      gain_of_length: {k: mean gain if each thought ends after k tokens}; k = K is the whole thought.
      length_used: the least k that reaches ENOUGH of the whole gain; None if thoughts do not help.
      entropy: mean entropy of each of the K draws, nats; most_entropy: that of a uniform draw.
      distinct: number of different thoughts among `count`.
      frequent: the most frequent thoughts.
      warnings: sentences about signs of collapse.
    """

    gain: float
    gain_error: float
    helped: float
    weight: float
    length: int
    gain_of_length: dict[int, float]
    length_used: int | None
    entropy: tuple[float, ...]
    most_entropy: float
    distinct: int
    count: int
    frequent: tuple[Frequent, ...]
    warnings: tuple[str, ...]


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _sample(
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
) -> tuple[jax.Array, jax.Array]:
    return thoughts_lib.sample_thoughts(params, tokens, key, Thinker(model, thought), mask)


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _score(
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    thought_BxTxRxK: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
) -> Scores:
    return thoughts_lib.score_thoughts(
        params, tokens, thought_BxTxRxK, Thinker(model, thought), mask
    )


def examine(
    loaded: Loaded, documents: Sequence[str], samples: int, max_tokens: int, seed: int
) -> tuple[list[list[Token]], Diagnostics]:
    """Think before every token of the documents, and measure the gain.

    Args:
      loaded: a thinking model.
      samples: R, number of independent thoughts at a token.
      max_tokens: tokens of a document at most; the rest is cut.
      seed: seed of the thoughts; batch i uses fold_in(key(seed), i).

    Raises:
      UserError: the documents have no token to predict.
    """
    assert loaded.thought is not None
    thought = dataclasses.replace(loaded.thought, rationales=samples, n_ahead_talk=1)
    opening = loaded.tokenizer.opening
    rows = [
        np.array([*opening, *loaded.tokenizer.after_opening(ids)][:max_tokens], np.int32)
        for ids in loaded.tokenizer.encode_batch(list(documents))
    ]
    if not any(len(row) > 1 for row in rows):
        raise UserError("the text has no token to predict; give a longer one with --text=FILE")
    length = -(-max(map(len, rows)) // LENGTHS) * LENGTHS
    size = max(1, min(ROWS, BATCH_TOKENS // length))
    shown, gains, by_length, entropies, drawn_all = [], [], [], [], []
    with jax.set_mesh(loaded.mesh):
        for i in range(0, len(rows), size):
            chosen = rows[i : i + size]
            empty = [np.zeros(0, np.int32)] * (size - len(chosen))
            batch = windows.pad_rows([*chosen, *empty], length, loaded.tokenizer.pad_id)
            tokens, mask = jnp.asarray(batch["tokens"]), jnp.asarray(batch["mask"])
            key = jax.random.fold_in(jax.random.key(seed), i // size)
            drawn, entropy = _sample(loaded.params, tokens, mask, key, loaded.model, thought)
            parts = {
                k: _score(
                    loaded.params,
                    tokens,
                    mask,
                    drawn[..., :k],
                    loaded.model,
                    dataclasses.replace(thought, n_ahead=k + 3),
                )
                for k in lengths_to_try(thought.num_tokens)
            }
            scores = jax.tree.map(np.asarray, parts[thought.num_tokens])
            drawn_BxTxRxK = np.asarray(drawn)
            shown += [
                _tokens(loaded, row, b, scores, drawn_BxTxRxK, len(opening))
                for b, row in enumerate(chosen)
            ]
            real = batch["mask"][:, 1:]
            gains.append(_gain_BxTxR(scores)[real])
            by_length.append({k: _gain_BxTxR(part)[real] for k, part in parts.items()})
            entropies.append(np.asarray(entropy)[:, :-1][real])
            drawn_all.append(drawn_BxTxRxK[:, :-1][real])
    mean_gain_of_length = {
        k: float(np.concatenate([part[k] for part in by_length]).mean()) for k in by_length[0]
    }
    entropy_K = np.concatenate(entropies).mean(axis=(0, 1))
    diagnosis = diagnose(shown, mean_gain_of_length, entropy_K, np.concatenate(drawn_all), loaded)
    return shown, diagnosis


def lengths_to_try(length: int) -> list[int]:
    """Powers of two below `length`, and `length` itself."""
    return sorted({2**i for i in range(length.bit_length())} & set(range(1, length)) | {length})


def _gain_BxTxR(scores: Scores) -> np.ndarray:
    """Gains in nats of the T - 1 predicted tokens, for each of R thoughts."""
    base, talk = np.asarray(scores.base_BxT), np.asarray(scores.blocks.talk_BxPxRxA)
    return talk[:, :-1, :, 0] - base[:, :-1, None]


def _tokens(
    loaded: Loaded,
    row: np.ndarray,
    b: int,
    scores: Scores,
    drawn_BxTxRxK: np.ndarray,
    opening: int,
) -> list[Token]:
    """The tokens of a document, each with the thoughts before it."""
    texts = pieces(loaded.tokenizer, row[opening:].tolist())
    gain_TxR = _gain_BxTxR(scores)[b]
    found = [] if opening else [Token(texts[0])] if texts else []
    for place in range(max(1, opening), len(row)):
        t = place - 1
        sampled = tuple(
            Thought(
                loaded.thought_text(drawn_BxTxRxK[b, t, r].tolist()),
                float(scores.blocks.mixing_weight_BxPxRxA[b, t, r, 0]),
                float(gain_TxR[t, r]),
            )
            for r in range(drawn_BxTxRxK.shape[2])
        )
        found.append(Token(texts[place - opening], float(scores.base_BxT[b, t]), sampled))
    return found


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined, they are the decoded text.

    A character that consists of several tokens belongs to the last of them.
    """
    whole = tokenizer.decode(ids)
    texts, done = [], 0
    for i in range(len(ids)):
        begun = tokenizer.decode(ids[: i + 1])
        if i + 1 < len(ids):
            begun = begun.rstrip("\ufffd")  # a character that is not complete yet
        end = max(done, min(len(begun), len(whole)))
        texts.append(whole[done:end])
        done = end
    return texts


def diagnose(
    shown: Sequence[Sequence[Token]],
    gain_of_length: dict[int, float],
    entropy_K: np.ndarray,
    drawn_NxRxK: np.ndarray,
    loaded: Loaded,
) -> Diagnostics:
    """The statistics of all thoughts, with warnings about suspicious ones.

    Args:
      shown: documents with their thoughts.
      gain_of_length: see `Diagnostics`.
      entropy_K: mean entropy of each draw, nats.
      drawn_NxRxK: token ids of R thoughts at each of N tokens.
    """
    tokens = [token for document in shown for token in document if token.thoughts]
    gains = np.array([token.gain for token in tokens])
    length = drawn_NxRxK.shape[-1]
    counts = collections.Counter(map(tuple, drawn_NxRxK.reshape(-1, length).tolist()))
    by_text: dict[str, list[float]] = {}
    for token in tokens:
        for thought in token.thoughts:
            by_text.setdefault(thought.text, []).append(thought.gain)
    total = counts.total()
    often = sorted(by_text.items(), key=lambda item: -len(item[1]))[:MOST_FREQUENT]
    frequent = [Frequent(text, len(own) / total, float(np.mean(own))) for text, own in often]
    whole = gain_of_length[length]
    enough = [k for k, gain in gain_of_length.items() if gain >= ENOUGH * whole]
    error = float(gains.std() / math.sqrt(len(gains)))
    weights = np.array([token.weight for token in tokens])
    assert loaded.thought is not None
    has_words = loaded.thought.has_words
    sampled = has_words and loaded.thought.temperature > 0
    most = counts.most_common(1)[0][1] / total if has_words else 0.0
    warnings = _warnings(whole, error, weights, entropy_K if sampled else None, most)
    repeated = (np.ptp(drawn_NxRxK, axis=-1) == 0).mean() if has_words and length > 1 else 0.0
    if repeated > SAME_SHARE:
        warnings.append(f"{repeated:.0%} of the thoughts repeat a single token.")
    return Diagnostics(
        gain=whole,
        gain_error=error,
        helped=float((gains > 0).mean()),
        weight=float(weights.mean()),
        length=length,
        gain_of_length=gain_of_length,
        length_used=min(enough) if whole > 0 else None,
        entropy=tuple(entropy_K.tolist()),
        most_entropy=math.log(loaded.tokenizer.vocab_size),
        distinct=len(counts),
        count=total,
        frequent=tuple(frequent),
        warnings=tuple(warnings),
    )


def _warnings(
    gain: float,
    error: float,
    weights: np.ndarray,
    entropy_K: np.ndarray | None,
    most: float,
) -> list[str]:
    found = []
    if not (math.isfinite(gain) and np.isfinite(weights).all()):
        found.append("The loss with thoughts or their weight is not finite: the model is broken.")
    if gain + 2 * error < 0:
        found.append(f"Thoughts hurt on this text: {gain:+.4f} nats a token.")
    elif gain - 2 * error <= 0:
        found.append(f"The gain could be chance: {gain:+.4f} \u00b1 {error:.4f} nats a token.")
    if most > SAME_SHARE:
        found.append(f"One thought makes up {most:.0%} of all: the thoughts have collapsed.")
    if entropy_K is not None and entropy_K.mean() < LOW_ENTROPY:
        found.append(
            f"Thought tokens are drawn with {entropy_K.mean():.3f} nats of entropy: almost no choice is "
            "left to learn from."
        )
    if np.abs(weights).mean() < LOW_WEIGHT:
        found.append(
            f"The mean mixing weight is {weights.mean():.4f}: predictions hardly use the thoughts."
        )
    return found
