"""Model FLOPs, counted from shapes: the arithmetic that is needed, without any waste.

A multiply-add is 2 FLOPs; only matrix products count. The backward pass costs twice the forward one;
recomputation by rematerialisation is not counted (the convention of model FLOPs utilisation).
Attention counts the visible keys only: the causal half, within the window of each layer.
"""

from __future__ import annotations

from collections.abc import Callable

from fqs_jax.model.config import ModelConfig
from fqs_jax.model.lora import Lora
from fqs_jax.thinking.config import ThoughtConfig

FORWARD, TRAIN = 1, 3  # forward only; forward and backward


def dense(model: ModelConfig) -> int:
    """Projections and MLP of all layers, one token."""
    c = model
    attention = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    return 2 * c.num_layers * (attention + 3 * c.width * c.mlp_dim)


def attend(model: ModelConfig, keys: float) -> int:
    """Scores and weighted values of all layers, one query over `keys` keys in each."""
    return _attend(model, lambda window: keys)


def _attend(model: ModelConfig, keys: Callable[[int | None], float]) -> int:
    """Scores and weighted values of all layers, over `keys(window of the layer)` keys."""
    period = [keys(layer.window) for layer in model.period]
    whole, rest = divmod(model.num_layers, len(period))
    return round(4 * model.num_heads * model.head_dim * (whole * sum(period) + sum(period[:rest])))


def _text_keys(length: int, slot: int, window: int | None) -> float:
    """The text keys that queries see, `slot` behind each position of a text; the mean."""
    most = length if window is None else min(length, max(window - slot, 0))
    return (most * (most + 1) / 2 + (length - most) * most) / length


def _block_keys(length: int, slots: int, window: int | None) -> float:
    """The keys that the slots of a block see, text and own ones; the sum over slots, the mean over text."""
    own = sum(slot if window is None else min(slot, window) for slot in range(1, slots + 1))
    return own + sum(_text_keys(length, slot, window) for slot in range(1, slots + 1))


def vocabulary(model: ModelConfig) -> int:
    """The output head, one token."""
    return 2 * model.width * model.vocab_size


def adapters(model: ModelConfig, lora: Lora) -> int:
    """The products with A and B of all layers' adapters, one token."""
    D, F = model.width, model.mlp_dim
    query, key = (heads * model.head_dim for heads in (model.num_heads, model.num_kv_heads))
    sides = {
        "q": D + query,
        "k": D + key,
        "v": D + key,
        "o": query + D,
        "gate": D + F,
        "up": D + F,
        "down": F + D,
    }
    return 2 * model.num_layers * lora.rank * sum(sides[name] for name in lora.targets)


def adaptation(
    model: ModelConfig, lora: Lora | None, tokens: int, reads: int, forward_only: int = 0
) -> int:
    """The difference that adapters make to one row: their own products, less the gradients of frozen kernels.

    Args:
      tokens: tokens that go through the layers, forward and backward. reads: of the head, likewise.
      forward_only: tokens that go through the layers without a gradient.
    """
    if lora is None:
        return 0
    own = adapters(model, lora)
    trained = tokens * (TRAIN * own - dense(model)) - reads * vocabulary(model)
    return trained + FORWARD * forward_only * own


def text_forward(model: ModelConfig, length: int) -> int:
    """A causal pass over a text, one row, without the head."""
    attention = _attend(model, lambda window: length * _text_keys(length, 0, window))
    return length * dense(model) + attention


def sampling(
    model: ModelConfig,
    thought: ThoughtConfig,
    length: int,
    positions: int,
    steps: int,
    reads: int,
) -> int:
    """Text pass, and `steps` cached thought steps with `reads` of the head at `positions` of one row."""
    attention = _attend(model, lambda window: _block_keys(length, steps, window))
    block = steps * dense(model) + attention + reads * vocabulary(model)
    return text_forward(model, length) + thought.rationales * positions * block


def scoring(
    model: ModelConfig,
    thought: ThoughtConfig,
    length: int,
    positions: int | None = None,
    thought_only: bool = False,
) -> int:
    """The packed forward pass of one row with thoughts at `positions` (None = all), and its head reads.

    Args:
      thought_only: whether the unmixed predictions of thoughts are read too. Mixing probabilities reads
        them anyway.
    """
    positions = length if positions is None else positions
    R, M, A = thought.rationales, thought.num_slots, thought.n_ahead_talk
    attention = _attend(model, lambda window: _block_keys(length, M, window))
    block = R * (M * dense(model) + attention)
    reads = block_reads(thought, thought_only) * vocabulary(model)
    # Base half of the first layer once a talk step, the rest for every rationale.
    width = model.width
    talk_head = 2 * A * (width * width + R * (2 * width * width + width))
    plain = text_forward(model, length) + length * vocabulary(model)
    return plain + positions * (block + reads + talk_head)


def block_reads(thought: ThoughtConfig, thought_only: bool) -> int:
    """Reads of the head at a position with thoughts; see `scoring`."""
    A = thought.n_ahead_talk
    talk_reads = 2 * A if thought_only and thought.mixing != "probability" else A
    scored = 0 if thought.tokens == "latent" else thought.num_tokens
    return thought.rationales * (scored + talk_reads)


def quiet_star_step(
    model: ModelConfig,
    thought: ThoughtConfig,
    batch: int,
    length: int,
    positions: int | None = None,
    choosing: bool = False,
    thought_only: bool = False,
    correct: bool = False,
    lora: Lora | None = None,
) -> int:
    """One thinking step: sampling without gradient, scoring with it; they share the text pass.

    Args:
      positions: number of positions of a row with thoughts; None = all.
      choosing: whether they are chosen by the plain prediction's entropy, which reads the head.
      thought_only: see `scoring`.
      correct: whether the likeliest tokens of mixed predictions are found (`score_blocks`).
    """
    positions = length if positions is None else positions
    steps = thought.head_reads  # tokens that are not sampled need no network
    sample = sampling(model, thought, length, positions, steps, steps)
    sample += choosing * length * vocabulary(model) - text_forward(model, length)
    if correct and thought.mixing == "probability":  # reads the plain prediction again
        sample += positions * thought.rationales * thought.n_ahead_talk * vocabulary(model)
    difference = adaptation(
        model,
        lora,
        tokens=length + positions * thought.rationales * thought.num_slots,
        reads=length + positions * block_reads(thought, thought_only),
        forward_only=positions * thought.rationales * steps,
    )
    score = scoring(model, thought, length, positions, thought_only)
    return batch * (FORWARD * sample + TRAIN * score + difference)


def next_token_step(
    model: ModelConfig,
    batch: int,
    length: int,
    lora: Lora | None = None,
    reads: int | None = None,
) -> int:
    """One plain training step, or one of the thought-free fine-tune, which costs the same.

    Args:
      reads: number of positions of a row at which the head is read; None = all.
    """
    reads = length if reads is None else reads
    forward = text_forward(model, length) + reads * vocabulary(model)
    return batch * (TRAIN * forward + adaptation(model, lora, length, reads))


def asking(
    model: ModelConfig,
    thought: ThoughtConfig,
    batch: int,
    length: int,
    positions: int | None = None,
) -> int:
    """A thinking teacher that scores every position of a batch, or some, without gradient.

    The start mark, K tokens and the end mark go through the network. The head is read for sampled
    tokens, and twice more: within a few per cent of the reads of distillation and NTP.

    Args:
      positions: number of positions of a row at which it thinks, each counted as seeing half of the
        text; None = all.
    """
    steps, reads = thought.num_tokens + 2, thought.head_reads + 2
    positions = length if positions is None else positions
    return batch * FORWARD * sampling(model, thought, length, positions, steps, reads)


def decode(model: ModelConfig, context: int, thought: ThoughtConfig | None = None) -> int:
    """One generated token behind `context` tokens.

    A thinking model makes n_ahead passes for it: its text token, the start mark, K tokens and the end
    mark. The head is read for each sampled token, and once or (`probability`) twice at the end, where
    the talk head is too.
    """
    step = dense(model) + _attend(
        model, lambda window: context if window is None else min(context, window)
    )
    if thought is None:
        return step + vocabulary(model)
    reads = thought.head_reads + (2 if thought.mixing == "probability" else 1)
    talk_head = 2 * (3 * model.width**2 + model.width)
    return thought.n_ahead * step + reads * vocabulary(model) + talk_head
