"""The reference rollout against recordings of the published code, transformers, and by hand.

A folder of recordings is config.json, weights.safetensors and any number of .npz files; one is
looked for in tests/data/parity and one in the optional folder of real inputs. The conversion from
Hugging Face names here is separate from the package's, as the reference is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import reference

HERE = Path(__file__).resolve().parent
FOLDERS = [
    HERE / "data" / "parity",
    Path(os.environ.get("FQS_SHARED") or HERE.parents[1] / "shared") / "parity",
]


def recordings(has_array: str) -> Any:
    """Parametrizes a test over the recordings with the named array; skips where there are none."""
    found = []
    for path in (path for folder in FOLDERS for path in sorted(folder.glob("*.npz"))):
        with np.load(path) as arrays:
            if has_array in arrays:
                found.append(pytest.param(path, id=f"{path.parents[1].name}-{path.stem}"))
    reason = f"no recording with {has_array!r} in {' or '.join(map(str, FOLDERS))}"
    missing = pytest.param(None, marks=pytest.mark.skip(reason=reason))
    return pytest.mark.parametrize("path", found or [missing])


def load(path: Path) -> tuple[dict[str, Any], SimpleNamespace, reference.Params]:
    """A recording's arrays, with `real_BxT` added, and the configuration and parameters beside it.

    real_BxT marks the targets that count: the published code ignores the padding *id* as a target,
    whatever the attention mask is.
    """
    with np.load(path) as recorded:
        arrays = dict(recorded)
    stored = json.loads((path.parent / "config.json").read_text())
    config = config_from_hf(stored)
    config.masked_ids = (stored["start_thought_id"], stored["end_thought_id"])
    config.options = {"embedding_scale": stored["embedding_scale"], "masked_ids": config.masked_ids}
    config.reinforce_temperature = stored["reinforce_temperature"]
    pad_id = stored["pad_token_id_used"]
    arrays["real_BxT"] = (arrays["attention_mask"] == 1) & (arrays["input_ids"] != pad_id)
    return arrays, config, params_from_hf(load_file(path.parent / "weights.safetensors"), config)


def config_from_hf(stored: dict[str, Any]) -> SimpleNamespace:
    """The configuration for the reference, from a config.json without rope scaling."""
    heads = stored["num_attention_heads"]
    return SimpleNamespace(
        num_layers=stored["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=stored["num_key_value_heads"],
        head_dim=stored.get("head_dim") or stored["hidden_size"] // heads,
        rope_theta=stored["rope_theta"],
        rope_scaling=None,
        norm_eps=stored["rms_norm_eps"],
        sliding_window=stored.get("sliding_window"),
    )


def params_from_hf(tensors: dict[str, Any], config: Any) -> reference.Params:
    """Hugging Face names with [out, in] kernels into the {'lm', 'thought'} tree of [in, out]."""
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim

    def stack(name: str, shape: Callable[[Any], Any]) -> Any:
        layers = [tensors[f"model.layers.{i}.{name}"] for i in range(config.num_layers)]
        return np.stack([shape(np.asarray(layer, np.float64)) for layer in layers])

    def attention(name: str, heads: int) -> dict[str, Any]:
        dense = {"kernel": stack(f"self_attn.{name}.weight", lambda w: split(w.T, heads))}
        if f"model.layers.0.self_attn.{name}.bias" in tensors:
            dense["bias"] = stack(f"self_attn.{name}.bias", lambda bias: split(bias, heads))
        return dense

    def split(w: Any, heads: int) -> Any:
        return w.reshape(*w.shape[:-1], heads, head_dim)

    def output(w: Any) -> Any:
        return w.T.reshape(heads, head_dim, -1)

    def transposed(w: Any) -> Any:
        return w.T

    lm: dict[str, Any] = {
        "embed": {"embedding": tensors["model.embed_tokens.weight"]},
        "layers": {
            "attn_norm": {"scale": stack("input_layernorm.weight", np.asarray)},
            "q": attention("q_proj", heads),
            "k": attention("k_proj", kv_heads),
            "v": attention("v_proj", kv_heads),
            "o": {"kernel": stack("self_attn.o_proj.weight", output)},
            "mlp_norm": {"scale": stack("post_attention_layernorm.weight", np.asarray)},
            "gate": {"kernel": stack("mlp.gate_proj.weight", transposed)},
            "up": {"kernel": stack("mlp.up_proj.weight", transposed)},
            "down": {"kernel": stack("mlp.down_proj.weight", transposed)},
        },
        "final_norm": {"scale": tensors["model.norm.weight"]},
    }
    if "lm_head.weight" in tensors:
        lm["head"] = {"kernel": tensors["lm_head.weight"].T}
    if "start_embedding" not in tensors:
        return reference.float64({"lm": lm})

    def talk_layer(index: int) -> dict[str, Any]:
        dense = {"kernel": tensors[f"talk_head.0.{index}.weight"].T}
        bias = tensors.get(f"talk_head.0.{index}.bias")
        return dense if bias is None else {**dense, "bias": bias}

    # Row 1 of the mark embeddings belongs to a mode that no published run uses.
    thought = {
        "start": tensors["start_embedding"][0],
        "end": tensors["end_embedding"][0],
        "talk_head": dict(
            zip(("hidden_1", "hidden_2", "out"), map(talk_layer, (0, 2, 4)), strict=True)
        ),
    }
    return reference.float64({"lm": lm, "thought": thought})


def close(actual: Any, recorded: Any, tolerance: float, real: Any = ...) -> None:
    """Equal to `tolerance`, relative to the largest recorded entry; compared where `real`."""
    actual, recorded = np.asarray(actual)[real], np.asarray(recorded)[real]
    assert actual.shape == recorded.shape
    assert np.max(np.abs(actual - recorded)) <= tolerance * np.max(np.abs(recorded))


def by_rationale(rows: Any, batch: int) -> Any:
    """[B * R, T, ...] as the published code repeats its rows, to [B, T, R, ...]."""
    return np.moveaxis(rows.reshape(batch, -1, *rows.shape[1:]), 1, 2)


@recordings("mixed_logits")
def test_greedy_thoughts_equal_the_published_ones(path: Path) -> None:
    arrays, config, params = load(path)
    tokens, mask = arrays["input_ids"], arrays["attention_mask"]
    recorded = arrays["thought_tokens"]
    real = mask == 1  # what a thought at a padded position sees differs, and never matters
    key, count = jax.random.key(0), recorded.shape[-1]
    thought = reference.sample(params, config, tokens, mask, key, count, 1, 0.0, **config.options)
    np.testing.assert_array_equal(thought[:, :, 0][real], recorded[real])

    for b, t in np.argwhere(real):
        base_D = reference.text_hidden(params["lm"], config, tokens[b], mask[b])[t]
        out = reference.rollout(
            params, config, tokens[b], mask[b], t, thought[b, t, 0], 1, **config.options
        )
        pairs = (
            (reference.logits(params["lm"], base_D), arrays["base_logits"][b, t]),
            (out.mixed_logits_AxV[0], arrays["mixed_logits"][b, t]),
            (out.mixing_weight_A[0], arrays["mixing_weight"][b, t]),
            (out.thought_logits_KxV, arrays["thought_logits"][b, t]),
        )
        for actual, expected in pairs:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@recordings("policy_reward")
def test_training_step_equals_the_published_one(path: Path) -> None:
    arrays, config, params = load(path)
    tokens, mask, real = arrays["input_ids"], arrays["attention_mask"], arrays["real_BxT"]
    batch, talk = len(tokens), int(arrays["n_ahead_talk"])
    thought = by_rationale(arrays["thought_tokens"], batch)

    # The recorded noise draws the recorded tokens.
    noise = by_rationale(arrays["gumbel_noise"], batch)
    for b, t, r in np.ndindex(thought.shape[:3]):
        if mask[b, t]:
            given = (tokens[b], mask[b], t, thought[b, t, r], talk)
            out = reference.rollout(params, config, *given, **config.options)
            drawn = np.argmax(out.thought_logits_KxV + noise[b, t, r], axis=-1)
            np.testing.assert_array_equal(drawn, thought[b, t, r])

    scores = reference.score(
        params,
        config,
        tokens,
        mask,
        thought,
        talk,
        reinforce_temperature=config.reinforce_temperature,
        **config.options,
    )
    visible = mask == 1
    log_prob = scores["thought_log_prob_BxTxRxK"][:, :-1]
    recorded = by_rationale(arrays["action_loglik"], batch)
    close(log_prob, recorded, 1e-5, visible[:, :-1])
    weight = by_rationale(np.moveaxis(arrays["mixing_weight_per_pass"][-talk:], 0, -1), batch)
    in_row = slice(None, tokens.shape[1] - talk)  # beyond, the published code does not wrap around
    close(scores["mixing_weight_BxTxRxA"][:, in_row], weight[:, in_row], 1e-4, visible[:, in_row])

    rewarded = arrays["policy_reward"].shape
    unclipped = reference.losses(scores, tokens, real, clip=False)
    close(unclipped["reward_BxRxT"].reshape(rewarded), arrays["policy_reward"], 1e-5)
    close(unclipped["advantage_BxRxT"].reshape(rewarded), arrays["advantage"], 1e-5)
    beta = float(arrays["policy_loss_beta"])
    published = reference.losses(scores, tokens, real, policy_weight=beta)
    for name in ("base", "talk", "nll", "policy", "total"):
        close(published[name], arrays[f"loss_{name}"], 1e-5)


@recordings("policy_reward")
@pytest.mark.parametrize("loss", ["nll", "policy"])
def test_losses_change_as_the_published_gradients_say(path: Path, loss: str) -> None:
    """The slope along the recorded gradient, thoughts and advantages held fixed."""
    arrays, config, params = load(path)
    tokens, mask, real = arrays["input_ids"], arrays["attention_mask"], arrays["real_BxT"]
    thought = by_rationale(arrays["thought_tokens"], len(tokens))
    prefix = f"grad_{loss}/"
    gradient = {
        name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)
    }
    norm = np.sqrt(sum(np.sum(np.square(part, dtype=np.float64)) for part in gradient.values()))
    direction = params_from_hf(gradient, config)
    advantage = np.maximum(arrays["advantage"], 0.0).reshape(
        len(tokens), -1, *arrays["advantage"].shape[1:]
    )

    def value(step: float) -> float:
        moved = jax.tree.map(lambda x, d: x + step / norm * d, params, direction)
        scores = reference.score(
            moved, config, tokens, mask, thought, int(arrays["n_ahead_talk"]), **config.options
        )
        if loss == "nll":
            return reference.losses(scores, tokens, real)["nll"]
        log_prob = np.moveaxis(scores["thought_log_prob_BxTxRxK"].mean(-1), 2, 1)
        return -np.mean(advantage * log_prob[..., : advantage.shape[-1]])

    step = 1e-8  # small, or a ReLU of the talk head switches on the way
    slope = (value(step) - value(-step)) / (2 * step)
    np.testing.assert_allclose(slope, norm, rtol=1e-4)


@recordings("labels_kl")
def test_ntp_loss_equals_the_published_one(path: Path) -> None:
    arrays, config, params = load(path)
    tokens, mask, real = arrays["input_ids"], arrays["attention_mask"], arrays["real_BxT"]
    rows = [
        reference.text_hidden(params["lm"], config, tokens[b], mask[b]) for b in range(len(tokens))
    ]
    student = reference.logits(params["lm"], np.stack(rows))
    np.testing.assert_allclose(student, arrays["logits"], rtol=0, atol=1e-4)
    teacher = np.take_along_axis(
        reference.log_softmax(arrays["labels_kl"][:, :-1].astype(np.float64)),
        tokens[:, 1:, None],
        axis=-1,
    )[..., 0]
    close(-teacher * real[:, 1:], arrays["teacher_nll"], 1e-5)
    given = (student, teacher, tokens, real, "sampled", arrays["sampled_tokens"])
    out = reference.ntp_loss(*given, clip=False)
    close(out["reward_BxS"], arrays["reward"], 1e-5)
    close(out["action_log_prob_BxS"], arrays["action_loglik"], 1e-5)
    out = reference.ntp_loss(*given, policy_weight=arrays["policy_loss_beta"])
    close(out["policy"], arrays["loss_rm"], 1e-5)
    close(out["total"], arrays["loss_total"], 1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_decoder_equals_transformers(family: str) -> None:
    """Llama with rope scaling as in 3.1, Mistral with a sliding window, Qwen2 tied, with biases."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    stored: dict[str, Any] = {
        "vocab_size": 31,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "rms_norm_eps": 1e-3,
        "rope_theta": 100.0,
        "tie_word_embeddings": family == "qwen2",
        "sliding_window": 5 if family == "mistral" else None,
    }
    rule = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_theta": 100.0, "rope_type": "default"}
    if family == "llama":
        rope |= {"rope_type": "llama3", "original_max_position_embeddings": 32, **rule}
    title = family.capitalize()
    their_config = getattr(transformers, f"{title}Config")(
        **stored, rope_parameters=rope, attn_implementation="eager"
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{title}ForCausalLM")(their_config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # away from norms of one and biases of zero
            weight.add_(0.3 * torch.randn_like(weight))

    config = config_from_hf(stored)
    if family == "llama":
        config.rope_scaling = SimpleNamespace(**rule, original_max_seq_len=32)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    if family == "qwen2":
        del tensors["lm_head.weight"]
    lm = params_from_hf(tensors, config)["lm"]

    tokens = np.random.default_rng(0).integers(0, stored["vocab_size"], (2, 20))
    mask = np.arange(20) < np.array([[20], [13]])
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits
    for b in range(2):
        actual = reference.logits(lm, reference.text_hidden(lm, config, tokens[b], mask[b]))
        close(actual, expected[b].numpy(), 1e-5, mask[b])


VOCAB, MASKED = 13, (11, 12)


def tiny(seed: int = 0) -> tuple[reference.Params, SimpleNamespace, Any, Any]:
    """Random parameters, a configuration, and two rows of text; the second row is padded."""
    rng, width, layers = np.random.default_rng(seed), 8, 2
    config = SimpleNamespace(num_layers=layers, num_heads=4, num_kv_heads=2, head_dim=4)
    vars(config).update(rope_theta=100.0, rope_scaling=None, norm_eps=1e-5, sliding_window=None)

    def dense(*shape: int) -> dict[str, Any]:
        return {"kernel": rng.normal(0, 0.4, shape), "bias": rng.normal(0, 0.4, shape[-1:])}

    def norm(*shape: int) -> dict[str, Any]:
        return {"scale": rng.uniform(0.5, 1.5, shape)}

    def plain(*shape: int) -> dict[str, Any]:
        return {"kernel": rng.normal(0, 0.4, shape)}

    layer_params = {
        "attn_norm": norm(layers, width),
        "q": plain(layers, width, 4, 4),
        "k": plain(layers, width, 2, 4),
        "v": plain(layers, width, 2, 4),
        "o": plain(layers, 4, 4, width),
        "mlp_norm": norm(layers, width),
        "gate": plain(layers, width, 12),
        "up": plain(layers, width, 12),
        "down": plain(layers, 12, width),
    }
    lm = {
        "embed": {"embedding": rng.normal(size=(VOCAB, width))},
        "layers": layer_params,
        "final_norm": norm(width),
        "head": plain(width, VOCAB),
    }
    head = {"hidden_1": dense(2 * width, width), "hidden_2": dense(width, width)}
    thought = {
        "start": rng.normal(size=width) / 100,
        "end": rng.normal(size=width) / 100,
        "talk_head": {**head, "out": plain(width, 1)},
    }
    tokens = rng.integers(0, VOCAB, (2, 7))
    return {"lm": lm, "thought": thought}, config, tokens, np.arange(7) < np.array([[7], [5]])


def test_a_token_depends_on_its_own_noise_alone() -> None:
    params, config, tokens, mask = tiny()
    key = jax.random.key(1)
    many = reference.sample(params, config, tokens, mask, key, 3, 2, 1.0, masked_ids=MASKED)
    few = reference.sample(params, config, tokens[:1], mask[:1], key, 2, 1, 1.0, masked_ids=MASKED)
    np.testing.assert_array_equal(few, many[:1, :, :1, :2])
    assert not np.isin(many, MASKED).any()
    assert (many[:, :, 0] != many[:, :, 1]).any()


def test_noise_is_added_to_logits_over_temperature() -> None:
    params, config, tokens, mask = tiny()
    key = jax.random.key(2)
    thought = reference.sample(params, config, tokens, mask, key, 2, 2, 0.5)
    for b, t, r, k in [(0, 3, 1, 0), (0, 4, 0, 1), (1, 2, 1, 0), (1, 3, 1, 1)]:
        out = reference.rollout(params, config, tokens[b], mask[b], t, thought[b, t, r], 1)
        own_key = key
        for index in (b, t, r, k):
            own_key = jax.random.fold_in(own_key, index)
        noise = jax.random.gumbel(own_key, (VOCAB,), np.float32)
        assert thought[b, t, r, k] == np.argmax(out.thought_logits_KxV[k] / 0.5 + noise)


def test_thoughts_see_neither_padding_nor_what_follows() -> None:
    params, config, tokens, mask = tiny()
    mask = mask & np.array([[True] * 7, [False] * 2 + [True] * 5])  # padded on both sides
    changed = np.where(mask, tokens, (tokens + 1) % VOCAB)
    changed[0, 4:] = (tokens[0, 4:] + 1) % VOCAB
    before, after = (
        reference.sample(params, config, text, mask, jax.random.key(1), 2, 3, 1.0)
        for text in (tokens, changed)
    )
    np.testing.assert_array_equal(before[0, :4], after[0, :4])
    np.testing.assert_array_equal(before[1, 2:5], after[1, 2:5])
    assert (before[0, 4:] != after[0, 4:]).any()


@pytest.mark.parametrize(("mixing", "weight"), [("linear", 0.0), ("probability", 0.5)])
def test_an_untrained_talk_head(mixing: str, weight: float) -> None:
    """Linear mixing starts as the text alone, s steps on; probability mixing half and half."""
    params, config, tokens, mask = tiny()
    params["thought"]["talk_head"]["out"]["kernel"][:] = 0.0
    thought = np.zeros((2, 7, 1, 2), int)
    scores = reference.score(params, config, tokens, mask, thought, 3, mixing=mixing)
    assert (scores["mixing_weight_BxTxRxA"] == weight).all()
    for s in range(3):
        base = np.roll(scores["base_log_prob_BxT"], -s, axis=1)
        talk = scores["talk_log_prob_BxTxRxA"][:, :, 0, s]
        if mixing == "linear":
            np.testing.assert_allclose(talk, base)
        else:
            assert (talk > base + np.log(0.5)).all()
    if mixing == "probability":
        without = reference.score(
            params, config, tokens, mask, thought, 1, mixing=mixing, mixing_bias=-60.0
        )
        talk = without["talk_log_prob_BxTxRxA"][:, :, 0, 0]
        np.testing.assert_allclose(talk, without["base_log_prob_BxT"])


def test_losses_by_hand() -> None:
    """One row of five tokens, the last one padding, with one talk step and two rationales."""
    talk = np.array([[-1.0, -2.0], [-1.0, -1.0], [-4.0, -2.0], [-9.0, -9.0], [-9.0, -9.0]])
    scores = {
        "base_log_prob_BxT": np.array([[-2.0, -2.0, -2.0, -9.0, -9.0]]),
        "talk_log_prob_BxTxRxA": talk[None, :, :, None],
        "thought_log_prob_BxTxRxK": np.full((1, 5, 2, 3), -6.0),
    }
    mask = np.array([[1, 1, 1, 1, 0]])
    out = reference.losses(scores, np.zeros((1, 5), int), mask, policy_weight=10.0)
    np.testing.assert_allclose(out["reward_BxRxT"], [[[1.0, 1.0, -2.0], [0.0, 1.0, 0.0]]])
    np.testing.assert_allclose(out["advantage_BxRxT"], [[[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    assert (out["base"], out["talk"]) == (2.0, [pytest.approx(11 / 6)])
    assert out["policy"] == pytest.approx(6.0 * 1.5 / 6)
    assert out["total"] == pytest.approx(0.5 * 2 + 0.5 * 11 / 6 + 10.0 * 1.5)

    alone = {name: array[:, :, :1] for name, array in scores.items() if "R" in name}
    out = reference.losses({**scores, **alone}, np.zeros((1, 5), int), mask)
    np.testing.assert_allclose(out["advantage_BxRxT"], [[[1.0, 1.0, 0.0]]])


def test_the_expected_action_is_the_mean_over_sampled_ones() -> None:
    rng = np.random.default_rng(0)
    student, tokens = rng.normal(size=(1, 2, VOCAB)), np.array([[1, 2]])
    given = (student, np.array([[-5.0]]), tokens, np.ones((1, 2)))
    sampled = [
        reference.ntp_loss(*given, "sampled", np.full((1, 2), token))["total"]
        for token in range(VOCAB)
    ]
    probability = np.exp(reference.log_softmax(student[0, 0]))
    expected = reference.ntp_loss(*given, "expected")["total"]
    np.testing.assert_allclose(expected, probability @ sampled)
    assert reference.ntp_loss(*given, "label")["total"] == sampled[2]
