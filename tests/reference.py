"""Quiet-STaR spelled out: the slow rollout that the fast code must equal, and its definition.

A thought at text position t of a row is nothing more than an ordinary sequence,

    text[0..t]  start  thought[0..K-1]  end  x[t+1] .. x[t+A-1]
    position ids 0 .. t, then t+1, t+2, ... without a gap

run through an ordinary causal decoder. Here every (row b, position t, rationale r), and while
sampling every token k, is written out as one such sequence and computed from scratch in float64
numpy: no cache, no scan, no batching, no packed attention mask. Nothing is shared with the package,
so that a mistake would have to be made twice; JAX serves for the sampling noise alone.

With "hidden" always meaning the state after the final norm:
- the states of start, thought[0], .., thought[K-2] propose thought[0], .., thought[K-1];
- the state of end predicts x[t+1] and that of the forced token x[t+s] predicts x[t+1+s] ("talk"),
  each after mixing with the state that the text alone has at t+s.
Where t+s runs off the end of the row it wraps around to the start; no loss uses those.

Names carry their axes: B rows, T text position, R rationales, K sampled thought tokens, A tokens
talked ahead, M thought-block slots (start, K, end, A-1 forced), D width, N query heads, G kv heads,
H head size, V vocabulary, S positions of whatever sequence is at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # float64, or integers where the name says tokens
Params = dict[str, Any]

MASKED_LOGIT = -1e10  # what the published code writes over the logits of the thought marks

# An ordinary decoder --------------------


def decoder_hidden(
    lm: Params, config: Any, embeddings_SxD: Any, positions_S: Any, key_mask_S: Any = None
) -> Array:
    """Final-norm hidden states [S, D] of one plain sequence under causal attention.

    Args:
      lm: the `lm` parameter tree, layers stacked on a leading axis, kernels [in, out].
      config: any object with the fields of ModelConfig.
      embeddings_SxD: what goes into the first layer.
      positions_S: increasing position ids, for the rotation and the sliding window.
      key_mask_S: False hides a position from every query, itself included. None = all visible.
    """
    lm, positions_S = float64(lm), np.asarray(positions_S)
    visible_SxS = visibility(positions_S, key_mask_S, config.sliding_window)
    hidden_SxD = float64(embeddings_SxD)
    for layer in range(config.num_layers):
        w = layer_weights(lm["layers"], layer)
        normed_SxD = rms_norm(hidden_SxD, w["attn_norm"], config)
        hidden_SxD = hidden_SxD + self_attention(w, config, normed_SxD, positions_S, visible_SxS)
        normed_SxD = rms_norm(hidden_SxD, w["mlp_norm"], config)
        hidden_SxD = hidden_SxD + swiglu(w, normed_SxD)
    return rms_norm(hidden_SxD, lm["final_norm"], config)


def visibility(positions_S: Array, key_mask_S: Any, window: int | None) -> Array:
    """[S, S], True where the query (row) sees the key (column): causal, real, inside the window."""
    visible_SxS = np.tril(np.ones((len(positions_S), len(positions_S)), bool))
    if key_mask_S is not None:
        visible_SxS &= np.asarray(key_mask_S, bool)[None, :]
    if window is not None:
        visible_SxS &= positions_S[:, None] - positions_S[None, :] < window
    return visible_SxS


def self_attention(
    w: Params, config: Any, normed_SxD: Array, positions_S: Array, visible_SxS: Array
) -> Array:
    """Grouped-query attention with rotary embeddings, [S, D] to [S, D]."""
    query_SxNxH = rotate(project(normed_SxD, w["q"]), positions_S, config)
    key_SxGxH = rotate(project(normed_SxD, w["k"]), positions_S, config)
    value_SxGxH = project(normed_SxD, w["v"])
    output_SxD = np.zeros_like(normed_SxD)
    for n in range(config.num_heads):
        g = n // (config.num_heads // config.num_kv_heads)
        scores_SxS = query_SxNxH[:, n] @ key_SxGxH[:, g].T / np.sqrt(config.head_dim)
        attended_SxH = masked_softmax(scores_SxS, visible_SxS) @ value_SxGxH[:, g]
        output_SxD += attended_SxH @ w["o"]["kernel"][n]
    return output_SxD


def project(x_SxD: Array, dense: Params) -> Array:
    """[S, D] through a [D, heads, H] kernel, with its bias where there is one."""
    projected = np.tensordot(x_SxD, dense["kernel"], axes=1)
    return projected + dense["bias"] if "bias" in dense else projected


def rotate(x_SxNxH: Array, positions_S: Array, config: Any) -> Array:
    """Rotary embedding, half-split: component i turns together with component i + H/2."""
    frequencies = [rope_frequency(pair, config) for pair in range(config.head_dim // 2)]
    angle = positions_S[:, None, None] * np.array(frequencies)
    first, second = np.split(x_SxNxH, 2, axis=-1)
    turned = first * np.cos(angle) - second * np.sin(angle)
    return np.concatenate([turned, second * np.cos(angle) + first * np.sin(angle)], axis=-1)


def rope_frequency(pair: int, config: Any) -> float:
    """Radians per position of one rotated pair, with the scaling rule of Llama 3.1 where asked for.

    That rule keeps frequencies which turn more than high_freq_factor times within the original
    context, slows down by `factor` those which turn less than low_freq_factor times, and blends
    linearly in between.
    """
    frequency = config.rope_theta ** (-2 * pair / config.head_dim)
    if (rule := config.rope_scaling) is None:
        return frequency
    turns = rule.original_max_seq_len * frequency / (2 * np.pi)
    if turns > rule.high_freq_factor:
        return frequency
    if turns < rule.low_freq_factor:
        return frequency / rule.factor
    keep = (turns - rule.low_freq_factor) / (rule.high_freq_factor - rule.low_freq_factor)
    return keep * frequency + (1 - keep) * frequency / rule.factor


def masked_softmax(scores: Array, visible: Array) -> Array:
    """Softmax over the visible entries of the last axis; all zeros where nothing is visible."""
    peak = np.max(scores, axis=-1, keepdims=True, where=visible, initial=-np.inf)
    weights = np.where(visible, np.exp(np.where(visible, scores - peak, 0.0)), 0.0)
    return weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)


def swiglu(w: Params, normed_SxD: Array) -> Array:
    gate = normed_SxD @ w["gate"]["kernel"]
    return (gate * sigmoid(gate) * (normed_SxD @ w["up"]["kernel"])) @ w["down"]["kernel"]


def rms_norm(x: Array, norm: Params, config: Any) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * norm["scale"]


def text_hidden(lm: Params, config: Any, tokens_T: Any, mask_T: Any = None) -> Array:
    """Hidden states [T, D] of a row of text without thoughts; nobody sees padding (mask False)."""
    return decoder_hidden(lm, config, embed(lm, tokens_T), np.arange(len(tokens_T)), mask_T)


def embed(lm: Params, tokens: Any) -> Array:
    return float64(lm["embed"]["embedding"])[np.asarray(tokens, np.int64)]


def logits(lm: Params, hidden: Any) -> Array:
    """Next-token logits [..., V] of final-norm hidden states [..., D]."""
    kernel_DxV = (
        float64(lm["head"]["kernel"]) if "head" in lm else float64(lm["embed"]["embedding"]).T
    )
    return float64(hidden) @ kernel_DxV


# One thought at one position --------------------


def start_and_thought(params: Params, thought_K: Any, embedding_scale: float) -> Array:
    """Embeddings [1 + K, D] of the start mark and the thought tokens so far.

    The marks are no rows of the vocabulary: their vectors are stored divided by `embedding_scale`.
    """
    start_D = float64(params["thought"]["start"]) * embedding_scale
    return np.vstack([start_D[None], embed(params["lm"], thought_K)])


def start_and_latents(
    params: Params, config: Any, tokens_T: Any, mask_T: Any, t: int, count: int, scale: float
) -> Array:
    """Inputs [1 + K, D] of a latent thought: each is the state that all before it end in.

    The text and the thought so far are computed anew for each of them.
    """
    inputs_SxD = start_and_thought(params, [], scale)
    for _ in range(count):
        hidden_SxD = block_hidden(params, config, tokens_T, mask_T, t, inputs_SxD)
        inputs_SxD = np.vstack([inputs_SxD, hidden_SxD[-1:]])
    return inputs_SxD


def end_and_forced(params: Params, forced: Any, embedding_scale: float) -> Array:
    """Embeddings [A, D] of the end mark and the true tokens forced after it."""
    end_D = float64(params["thought"]["end"]) * embedding_scale
    return np.vstack([end_D[None], embed(params["lm"], forced)])


def block_hidden(
    params: Params, config: Any, tokens_T: Any, mask_T: Any, t: int, block_MxD: Array
) -> Array:
    """Hidden states [M, D] of a thought block written out behind text[0..t].

    Padded text is hidden from the block as from everybody; the block's own slots never are.
    """
    sequence_SxD = np.vstack([embed(params["lm"], tokens_T[: t + 1]), block_MxD])
    key_mask_S = np.concatenate([np.asarray(mask_T[: t + 1], bool), np.ones(len(block_MxD), bool)])
    positions_S = np.arange(len(sequence_SxD))
    return decoder_hidden(params["lm"], config, sequence_SxD, positions_S, key_mask_S)[t + 1 :]


def thought_logits(lm: Params, hidden: Array, masked_ids: Iterable[int]) -> Array:
    """Logits [..., V] that thought tokens are drawn from: not mixed, and without `masked_ids`."""
    masked = logits(lm, hidden)
    masked[..., list(masked_ids)] = MASKED_LOGIT
    return masked


def mix(
    params: Params, base_D: Array, thought_D: Array, mixing: str, mixing_bias: float
) -> tuple[Array, float]:
    """Predictions with and without the thought combined: logits [V] and the weight of the thought.

    linear (published): w is the talk head's output as it comes, neither bounded nor shifted, and
      mixes hidden states. probability: w = sigmoid(output + mixing_bias) mixes distributions; the
      logits returned are the log-probabilities of the mixture.
    """
    output = talk_head(params["thought"]["talk_head"], base_D, thought_D)
    if mixing == "linear":
        return logits(params["lm"], (1 - output) * base_D + output * thought_D), output
    if mixing != "probability":
        raise ValueError(f"mixing is 'linear' or 'probability', not {mixing!r}")
    weight = sigmoid(output + mixing_bias)
    base_V = np.exp(log_softmax(logits(params["lm"], base_D)))
    thought_V = np.exp(log_softmax(logits(params["lm"], thought_D)))
    return np.log((1 - weight) * base_V + weight * thought_V), weight


def talk_head(head: Params, base_D: Array, thought_D: Array) -> float:
    """Two hidden layers with ReLU over (base, thought), base first; one output without a bias."""
    x = np.concatenate([base_D, thought_D])
    for name in ("hidden_1", "hidden_2"):
        x = np.maximum(x @ float64(head[name]["kernel"]) + float64(head[name]["bias"]), 0.0)
    return float((x @ float64(head["out"]["kernel"]))[0])


class Rollout(NamedTuple):
    """Result of one given thought at one position."""

    thought_logits_KxV: Array  # the logits that each thought token is drawn from
    mixed_logits_AxV: Array  # row s predicts x[t+1+s]
    mixing_weight_A: Array


def rollout(
    params: Params,
    config: Any,
    tokens_T: Any,
    mask_T: Any,
    t: int,
    thought_K: Any,
    talk: int,
    mixing: str = "linear",
    mixing_bias: float = 0.0,
    embedding_scale: float = 100.0,
    masked_ids: Sequence[int] = (),
    latent: bool = False,
) -> Rollout:
    """Follow one given thought at text position t of one row, as the top of this file has it.

    Args:
      latent: have a latent thought as long as `thought_K` in its place.
    """
    lm, length, num_tokens = params["lm"], len(tokens_T), len(thought_K)
    forced = [tokens_T[(t + s) % length] for s in range(1, talk)]
    if latent:
        where = (tokens_T, mask_T, t)
        opening = start_and_latents(params, config, *where, num_tokens, embedding_scale)
    else:
        opening = start_and_thought(params, thought_K, embedding_scale)
    closing = end_and_forced(params, forced, embedding_scale)
    block_MxD = np.vstack([opening, closing])
    hidden_MxD = block_hidden(params, config, tokens_T, mask_T, t, block_MxD)

    # The text alone predicts x[t+1+s] from its state at t+s, not from the one at t.
    base_TxD = text_hidden(lm, config, tokens_T, mask_T)
    mixed_logits, weights = [], []
    for s in range(talk):
        base_D, thought_D = base_TxD[(t + s) % length], hidden_MxD[num_tokens + 1 + s]
        logits_V, weight = mix(params, base_D, thought_D, mixing, mixing_bias)
        mixed_logits.append(logits_V)
        weights.append(weight)
    proposed_KxV = thought_logits(lm, hidden_MxD[:num_tokens], masked_ids)
    return Rollout(proposed_KxV, np.stack(mixed_logits), np.array(weights))


# Every thought, every position --------------------


def sample(
    params: Params,
    config: Any,
    tokens_BxT: Any,
    mask_BxT: Any,
    key: jax.Array,
    num_tokens: int,
    rationales: int,
    temperature: float,
    embedding_scale: float = 100.0,
    masked_ids: Sequence[int] = (),
) -> Array:
    """Draw a thought for every row, position and rationale: token ids [B, T, R, K].

    At temperature 0 the most probable token is taken, and all rationales are the same.
    """
    params, tokens_BxT, mask_BxT = float64(params), np.asarray(tokens_BxT), np.asarray(mask_BxT)
    thought_BxTxRxK = np.zeros((*tokens_BxT.shape, rationales, num_tokens), np.int64)
    for b, t, r, k in np.ndindex(thought_BxTxRxK.shape):
        so_far_MxD = start_and_thought(params, thought_BxTxRxK[b, t, r, :k], embedding_scale)
        hidden_MxD = block_hidden(params, config, tokens_BxT[b], mask_BxT[b], t, so_far_MxD)
        logits_V = thought_logits(params["lm"], hidden_MxD[-1], masked_ids)
        if temperature > 0:
            logits_V = logits_V / temperature + gumbel_noise(key, (b, t, r, k), len(logits_V))
        thought_BxTxRxK[b, t, r, k] = np.argmax(logits_V)
    return thought_BxTxRxK


def gumbel_noise(key: jax.Array, indices: Sequence[int], size: int) -> Array:
    """Noise [size] that belongs to one (b, t, r, k), whatever else is sampled beside it."""
    for index in indices:
        key = jax.random.fold_in(key, index)
    return float64(jax.random.gumbel(key, (size,), np.float32))


def score(
    params: Params,
    config: Any,
    tokens_BxT: Any,
    mask_BxT: Any,
    thought_BxTxRxK: Any,
    talk: int,
    reinforce_temperature: float = 3.0,
    mixing: str = "linear",
    mixing_bias: float = 0.0,
    embedding_scale: float = 100.0,
    masked_ids: Sequence[int] = (),
    latent: bool = False,
) -> dict[str, Array]:
    """Score given thoughts, or latent ones as long. Targets off the end of a row wrap around to its start.

    Returns:
      base_log_prob_BxT: log p(x[t+1]) from the text alone.
      thought_log_prob_BxTxRxK: of each thought token, at `reinforce_temperature`, marks masked; 0 for
        latent thoughts, which have none.
      talk_log_prob_BxTxRxA: log p(x[t+1+s]), mixed, at temperature 1, nothing masked.
      mixing_weight_BxTxRxA: the weight of the thought in it.
    """
    params, tokens_BxT, mask_BxT = float64(params), np.asarray(tokens_BxT), np.asarray(mask_BxT)
    thought_BxTxRxK = np.asarray(thought_BxTxRxK)
    batch, length, rationales, _ = thought_BxTxRxK.shape
    base_BxT = np.zeros((batch, length))
    proposed_BxTxRxK = np.zeros(thought_BxTxRxK.shape)
    talk_BxTxRxA, weight_BxTxRxA = np.zeros((2, batch, length, rationales, talk))

    for b in range(batch):
        tokens_T, mask_T = tokens_BxT[b], mask_BxT[b]
        base_TxV = logits(params["lm"], text_hidden(params["lm"], config, tokens_T, mask_T))
        for t in range(length):
            base_BxT[b, t] = log_softmax(base_TxV[t])[tokens_T[(t + 1) % length]]
        for t, r in np.ndindex(length, rationales):
            thought_K = thought_BxTxRxK[b, t, r]
            options = (mixing, mixing_bias, embedding_scale, masked_ids, latent)
            out = rollout(params, config, tokens_T, mask_T, t, thought_K, talk, *options)
            weight_BxTxRxA[b, t, r] = out.mixing_weight_A
            for k, token in enumerate([] if latent else thought_K):
                tempered_V = log_softmax(out.thought_logits_KxV[k] / reinforce_temperature)
                proposed_BxTxRxK[b, t, r, k] = tempered_V[token]
            for s in range(talk):
                target = tokens_T[(t + 1 + s) % length]
                talk_BxTxRxA[b, t, r, s] = log_softmax(out.mixed_logits_AxV[s])[target]
    return {
        "base_log_prob_BxT": base_BxT,
        "thought_log_prob_BxTxRxK": proposed_BxTxRxK,
        "talk_log_prob_BxTxRxA": talk_BxTxRxA,
        "mixing_weight_BxTxRxA": weight_BxTxRxA,
    }


# The objectives --------------------


def losses(
    scores: dict[str, Array],
    tokens_BxT: Any,
    mask_BxT: Any,
    policy_weight: float = 1e6,
    base_weight: float = 0.5,
    clip: bool = True,
) -> dict[str, Any]:
    """The Quiet-STaR objective from the output of `score`.

    Args:
      mask_BxT: True where a token is real: only those count as targets.
      clip: drop negative advantages.

    Returns:
      base, talk (a list over s), nll, policy, total: floats;
      reward_BxRxT, advantage_BxRxT: over T - 1 - A positions, one fewer than have all A targets.
    """
    base_BxT = scores["base_log_prob_BxT"]
    talk_BxTxRxA = scores["talk_log_prob_BxTxRxA"]
    thought_BxTxRxK = scores["thought_log_prob_BxTxRxK"]
    real_BxT = np.asarray(mask_BxT, bool)
    batch, length = np.shape(tokens_BxT)
    rationales, talk = talk_BxTxRxA.shape[2:]

    base = mean(-base_BxT[b, t] for b, t in np.ndindex(batch, length - 1) if real_BxT[b, t + 1])
    talk_losses = []
    for s in range(talk):
        places = np.ndindex(batch, max(length - 1 - s, 0), rationales)
        talk_losses.append(
            mean(-talk_BxTxRxA[b, t, r, s] for b, t, r in places if real_BxT[b, t + 1 + s])
        )
    nll = base_weight * base + (1 - base_weight) * mean(talk_losses)

    # Reward: how much more probable the thought made the next A tokens, summed over them.
    reward_BxRxT = np.zeros((batch, rationales, max(length - 1 - talk, 0)))
    for b, r, t in np.ndindex(reward_BxRxT.shape):
        for s in range(talk):
            if real_BxT[b, t + 1 + s]:
                reward_BxRxT[b, r, t] += talk_BxTxRxA[b, t, r, s] - base_BxT[b, t + s]

    # Advantage: over the mean of the rationales at the same place; a lone one has no such baseline.
    advantage_BxRxT = reward_BxRxT.copy()
    if rationales > 1:
        advantage_BxRxT -= reward_BxRxT.mean(axis=1, keepdims=True)
    if clip:
        advantage_BxRxT = np.maximum(advantage_BxRxT, 0.0)

    # A plain mean: padded positions have advantage 0 and still count in the denominator.
    policy = mean(
        -advantage_BxRxT[b, r, t] * mean(thought_BxTxRxK[b, t, r])
        for b, r, t in np.ndindex(advantage_BxRxT.shape)
    )
    return {
        "base": base,
        "talk": talk_losses,
        "nll": nll,
        "reward_BxRxT": reward_BxRxT,
        "advantage_BxRxT": advantage_BxRxT,
        "policy": policy,
        "total": nll + policy_weight * policy,
    }


def ntp_loss(
    student_logits_BxTxV: Any,
    teacher_log_prob_BxS: Any,
    tokens_BxT: Any,
    mask_BxT: Any,
    action: str = "sampled",
    sampled_BxT: Any = None,
    temperature: float = 3.0,
    clip: bool = True,
    policy_weight: float = 1e6,
) -> dict[str, Any]:
    """The thought-free stage: REINFORCE without thoughts, and without a likelihood term.

    The reward, log p_student(x[t+1]) - log p_teacher(x[t+1]), is positive where the student is the
    better one, and does not depend on the action.

    Args:
      student_logits_BxTxV: logits of a plain causal pass.
      teacher_log_prob_BxS: log p_teacher(x[t+1]) at the S = T - 1 positions with a next token.
      mask_BxT: True where a token is real: only those count as targets.
      action: what the reward makes more probable, at `temperature`: 'sampled', the tokens
        `sampled_BxT` drawn from the student at temperature 1 (published); 'expected', the mean over
        all such draws; 'label', the true next token.

    Returns:
      reward_BxS, action_log_prob_BxS, and the floats policy and total = policy_weight * policy.
    """
    student_BxTxV, teacher_BxS = float64(student_logits_BxTxV), float64(teacher_log_prob_BxS)
    tokens_BxT, real_BxT = np.asarray(tokens_BxT), np.asarray(mask_BxT, bool)
    reward_BxS, action_BxS = np.zeros((2, *teacher_BxS.shape))
    for b, t in np.ndindex(teacher_BxS.shape):
        log_prob_V = log_softmax(student_BxTxV[b, t])
        tempered_V = log_softmax(student_BxTxV[b, t] / temperature)
        label = tokens_BxT[b, t + 1]
        if real_BxT[b, t + 1]:
            reward = log_prob_V[label] - teacher_BxS[b, t]
            reward_BxS[b, t] = max(reward, 0.0) if clip else reward
        if action == "sampled":
            action_BxS[b, t] = tempered_V[sampled_BxT[b, t]]
        elif action == "expected":
            action_BxS[b, t] = np.exp(log_prob_V) @ tempered_V
        elif action == "label":
            action_BxS[b, t] = tempered_V[label]
        else:
            raise ValueError(f"action is 'sampled', 'expected' or 'label', not {action!r}")
    policy = mean((-reward_BxS * action_BxS).flat)
    total = policy_weight * policy
    names = ("reward_BxS", "action_log_prob_BxS", "policy", "total")
    return dict(zip(names, (reward_BxS, action_BxS, policy, total), strict=True))


# Small tools --------------------


def float64(tree: Any) -> Any:
    """An array, or a tree of arrays, as float64 numpy (not copied where it is that already)."""
    if isinstance(tree, dict):
        return {name: float64(branch) for name, branch in tree.items()}
    return np.asarray(tree, np.float64)


def layer_weights(stacked: Any, layer: int) -> Any:
    """One layer out of a tree whose leaves are stacked over layers."""
    if isinstance(stacked, dict):
        return {name: layer_weights(branch, layer) for name, branch in stacked.items()}
    return stacked[layer]


def log_softmax(x: Array) -> Array:
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def sigmoid(x: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def mean(values: Iterable[Any]) -> float:
    """Plain mean; 0 for no values: a batch of nothing but padding has no loss."""
    listed = [float(value) for value in values]
    return sum(listed) / len(listed) if listed else 0.0
