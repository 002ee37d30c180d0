"""Times of a token: rounds alternate between programs, and equal programs share one figure."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.evaluation import comparison, timing
from fqs_jax.inference import generation
from fqs_jax.runs import loading
from tests.tiny_runs import clock_config, save_stage


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Stages base, think-5-2, think-4-2 and the student that does not think."""
    root = tmp_path_factory.mktemp("run") / "W"
    config = clock_config({"data.clock.lengths": (1,), "data.num_documents": 20})
    for number in range(4):
        save_stage(root, config, number, seed=number)
    return root


@pytest.fixture
def calls(monkeypatch):
    """Programs in the order they run; each call reports a time that no other call reports."""
    calls = []

    def generate(model, prompts, max_new_tokens, on_step):
        assert model.tokenizer.eos_id is None  # a model that stops early is not faster
        assert set(model.params) >= ({"lm", "thought"} if model.thought else {"lm"})
        calls.append(model.thought)
        usual = 0.001 * 2 ** len(calls)
        for step in range(max_new_tokens):
            seconds = 99.0 if step in (0, 5) else usual  # the first step reads the prompt
            on_step(generation.Emitted(np.zeros(1), np.zeros((1, 0)), np.zeros(1), seconds))

    monkeypatch.setattr(generation, "generate", generate)
    return calls


def test_rounds_alternate_and_equal_programs_share_a_figure(root, calls):
    """Stage 3 does not think, as stage 0: three programs for four models and the scaled base."""
    rows = comparison.compare(root, 1)
    base, scaled, first, second, student = rows
    thoughts = [loading.load(str(root), str(number)).thought for number in range(3)]
    assert len(set(thoughts)) == 3 and calls == thoughts * (1 + timing.ROUNDS)
    assert base.ms_per_token == scaled.ms_per_token == student.ms_per_token
    # The first round compiles. Of rounds 2 to 6, which take 2^n ms at call n, the median is round 4.
    assert [row.ms_per_token for row in (base, first, second)] == pytest.approx(
        [2**10, 2**11, 2**12]
    )


def test_a_program_is_timed_with_parameters_of_its_shapes(root, monkeypatch):
    """Models of another number type are another program, and keep their own parameters."""
    ran = []
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(
        timing, "_median_seconds", lambda model, _: ran.append(model.params["lm"]) or 1.0
    )
    plain = loading.load(str(root), "0")
    lm = {"lm": {"embed": plain.params["lm"]["embed"]["embedding"].astype(jnp.bfloat16)}}
    model = dataclasses.replace(plain.model, param_dtype="bfloat16")
    times = timing.TokenTimes()
    keys = [times.add(plain), times.add(dataclasses.replace(plain, params=lm, model=model))]
    again = times.add(dataclasses.replace(plain, label="another", params=dict(plain.params)))
    assert again == keys[0] != keys[1]
    assert times.milliseconds("1 +1 =") == dict.fromkeys(keys, 1000.0)
    assert [set(params) for params in ran] == [set(plain.params["lm"]), {"embed"}] * 2
