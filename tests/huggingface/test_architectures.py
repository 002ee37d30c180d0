"""Architectures whose layers differ, or with norms elsewhere: text, thoughts, generation and export.

transformers computes the same. There is one small random model for each, with a window that is shorter
than the text, and the slow rollout of thoughts (tests/reference.py) has transformers' own model as its
decoder. The parts of OLMo 2 and of Llama with biases occur here and in tests/thinking too, so only their
logits and exports are compared, in test_transformers_parity.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax import huggingface
from fqs_jax.inference import decoding
from fqs_jax.model import decoder
from fqs_jax.thinking import parameters, sampling, scoring
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from tests import reference
from tests.huggingface.test_transformers_parity import (
    assert_same_model,
    load_theirs,
    random_model,
    their_logits,
)

torch = pytest.importorskip("torch")

WINDOW = 3
SMALL = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 8, "vocab_size": 29}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
}
# Family, settings; and fields of ModelConfig that would be missed if the settings were ignored.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen3": (
        "Qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        {"qk_norm": "head", "layer_types": ("full", "sliding"), "tied_embeddings": True},
    ),
    "smollm3": (
        "SmolLM3",
        {"no_rope_layer_interval": 2, "num_hidden_layers": 3},
        {"layer_types": ("full", "no_rope"), "rope_theta": 2e6},
    ),
    "olmo3": (
        "Olmo3",
        {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": YARN,
            },
        },
        {"layer_types": ("sliding", "full"), "local_rope_theta": 100.0},
    ),
    "gemma3": (
        "Gemma3",
        {
            "num_hidden_layers": 3,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 5,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0},
            },
        },
        {"layer_types": ("sliding", "full"), "query_scalar": 5.0, "stored_norm_offset": 1.0},
    ),
}
TOKENS_BxT = np.random.default_rng(0).integers(0, SMALL["vocab_size"], (2, 8))
THOUGHT = ThoughtConfig(n_ahead=6, n_ahead_talk=3, rationales=1, temperature=0.0)


@dataclasses.dataclass
class Case:
    """A model of transformers, its folder, and what was read from it; compiling takes longest."""

    theirs: Any
    folder: Path
    thinker: Thinker
    params: dict[str, Any]
    text: scoring.Text
    logits_BxTxV: np.ndarray  # theirs


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, settings, fields = CASES[request.param]
    # transformers' default ids of special tokens lie beyond this vocabulary.
    ids = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    theirs = random_model(family, {**SMALL, **ids, **settings})
    with torch.no_grad():
        for parameter in theirs.parameters():  # as published: so 1 + w - 1 of Gemma's norms is w
            parameter.copy_(parameter.bfloat16())
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    config = huggingface.read_config(folder)
    assert {name: getattr(config, name) for name in fields} == fields
    params = {"lm": huggingface.load_params(folder, config)}
    thinker = Thinker(config, THOUGHT)
    thought = parameters.init(thinker, params["lm"], jax.random.key(0), 3, 4)
    thought["talk_head"]["out"]["kernel"] = jnp.full((config.width, 1), 0.5)
    params["thought"] = thought
    read = jax.jit(lambda params, tokens: scoring.read_text(params, tokens, config))
    text = read(params, jnp.asarray(TOKENS_BxT))
    return Case(theirs, folder, thinker, params, text, their_logits(theirs, TOKENS_BxT))


def test_logits(case: Case) -> None:
    assert case.logits_BxTxV.std() > 0.5
    ours_BxTxV = decoder.head_logits(case.params["lm"], case.text.hidden_BxTxD)
    np.testing.assert_allclose(ours_BxTxV, case.logits_BxTxV, rtol=0, atol=1e-4)


def test_export(case: Case, tmp_path: Path) -> None:
    lm, config = case.params["lm"], case.thinker.model
    huggingface.export(lm, config, tmp_path / "out", case.folder)
    assert_same_model(load_theirs(tmp_path / "out"), case.theirs)
    huggingface.export(lm, config, tmp_path / "fresh")
    assert huggingface.read_config(tmp_path / "fresh") == config
    fresh = load_theirs(tmp_path / "fresh")
    assert type(fresh) is type(case.theirs)
    np.testing.assert_allclose(
        their_logits(fresh, TOKENS_BxT), case.logits_BxTxV, rtol=0, atol=1e-5
    )
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] and written["torch_dtype"] == "float32"


@pytest.fixture
def their_decoder(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow rollout runs transformers' model."""

    def hidden(lm: Any, config: Any, embeddings_SxD: Any, positions_S: Any, mask: Any) -> Any:
        assert mask is None or np.all(mask)
        with torch.no_grad():
            inputs = torch.as_tensor(np.asarray(embeddings_SxD, np.float32))[None]
            return case.theirs.model(inputs_embeds=inputs).last_hidden_state[0].double().numpy()

    def embed(lm: Any, tokens: Any) -> Any:
        with torch.no_grad():
            ids = torch.as_tensor(np.asarray(tokens, np.int64))
            return case.theirs.model.embed_tokens(ids).double().numpy()

    monkeypatch.setattr(reference, "decoder_hidden", hidden)
    monkeypatch.setattr(reference, "embed", embed)


@pytest.mark.usefixtures("their_decoder")
def test_thoughts_are_those_of_the_slow_rollout(case: Case) -> None:
    config = case.thinker.model
    tokens_1xT = TOKENS_BxT[:1]
    given = case.params, config, tokens_1xT, np.ones_like(tokens_1xT, bool)
    text = case.text._replace(
        tokens_BxT=case.text.tokens_BxT[:1],
        hidden_BxTxD=case.text.hidden_BxTxD[:1],
        key_LxBxTxGxH=case.text.key_LxBxTxGxH[:, :1],
        value_LxBxTxGxH=case.text.value_LxBxTxGxH[:, :1],
        log_prob_BxT=case.text.log_prob_BxT[:1],
    )

    @jax.jit
    def sample_and_score(params: Any, text: scoring.Text) -> tuple[Any, scoring.BlockScores]:
        drawn = sampling.sample(params, text.cache, jax.random.key(0), case.thinker)
        drawn_BxPxRxK = drawn.tokens_BxPxRxK
        return drawn_BxPxRxK, scoring.score_blocks(params, text, drawn_BxPxRxK, case.thinker)

    drawn, scores = sample_and_score(case.params, text)
    K = THOUGHT.num_tokens
    greedy = reference.sample(*given, jax.random.key(0), K, rationales=1, temperature=0.0)
    np.testing.assert_array_equal(drawn, greedy)
    slow = reference.score(*given, greedy, talk=THOUGHT.n_ahead_talk)
    for name, ours in {
        "base_log_prob_BxT": text.log_prob_BxT,
        "thought_log_prob_BxTxRxK": scores.thought_BxPxRxK,
        "talk_log_prob_BxTxRxA": scores.talk_BxPxRxA,
        "mixing_weight_BxTxRxA": scores.mixing_weight_BxPxRxA,
    }.items():
        np.testing.assert_allclose(ours, slow[name], rtol=0, atol=2e-4, err_msg=name)


def test_cached_decoding_equals_the_whole_pass(case: Case) -> None:
    """The caches begin with a part of the text's; rows have lengths of their own."""
    config = case.thinker.model
    length_B = np.array([3, 1])
    at_T = np.arange(TOKENS_BxT.shape[1])[None, :, None, None]
    kept = at_T < length_B[:, None, None, None]
    key, value = (jnp.where(kept, cache, 9.0) for cache in case.text.cache)
    cursor = decoding.Cursor(key, value, jnp.asarray(length_B), case.text.hidden_BxTxD[:, 0])
    extend = jax.jit(decoding.extend, static_argnames="model")
    for step in range(5):
        at_B = length_B + step
        token_B = jnp.asarray(TOKENS_BxT[np.arange(2), at_B])
        cursor = extend(case.params, cursor, token_B, model=config)
        ours_BxV = decoder.head_logits(case.params["lm"], cursor.hidden_BxD)
        expected_BxV = case.logits_BxTxV[np.arange(2), at_B]
        np.testing.assert_allclose(ours_BxV, expected_BxV, rtol=0, atol=1e-4, err_msg=str(step))
