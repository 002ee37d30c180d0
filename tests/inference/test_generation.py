"""The host loop of generation: which programs run, how often, and what becomes of the caches."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.inference import generation
from fqs_jax.inference.generation import generate
from fqs_jax.runs import loading
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, save_stage

BASE, THINKS, NTP = "0", "1", "3"
SETTINGS = {"temperature": 0.0, "top_p": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Stages of a run by number, with random parameters; none of them ends a text by itself."""
    root = tmp_path_factory.mktemp("generation") / "W"
    for number in (BASE, THINKS, NTP):
        save_stage(root, clock_config({"model.num_layers": 2}), int(number), seed=int(number))
    loaded = {number: loading.load(str(root), number) for number in (BASE, THINKS, NTP)}
    return {
        number: dataclasses.replace(
            model, tokenizer=dataclasses.replace(model.tokenizer, eos_id=None)
        )
        for number, model in loaded.items()
    }


def prompts(*lengths):
    """Prompts of these many tokens, the opening one aside."""
    return [" ".join("0123456"[i * i % 7] for i in range(length)) for length in lengths]


def cursor_of(loaded, rows, cache):
    tokens = np.full((rows, 32), 3, np.int32)
    length = jnp.arange(2, 2 + rows)
    return generation.prefill(loaded.params, tokens, length, model=loaded.model, room=cache - 32)


def lowered(loaded, rows=2, cache=128):
    """The program of a token."""
    options = SETTINGS | {"allowed": loaded.tokenizer.vocab_size}
    cursor = cursor_of(loaded, rows, cache)
    return generation._step.lower(
        loaded.params,
        cursor,
        jax.random.key(0),
        np.int32(0),
        model=loaded.model,
        thought=loaded.thought,
        **options,
    )


@pytest.mark.parametrize("number", [BASE, THINKS])
def test_a_prompt_in_a_batch_is_continued_as_alone(models, number):
    """Its neighbours have other lengths, and the caches are others."""
    loaded = models[number]
    if loaded.thought is not None:  # draws depend on the row
        thought = dataclasses.replace(loaded.thought, temperature=0.0)
        loaded = dataclasses.replace(loaded, thought=thought)
    texts = prompts(40, 3, 11)
    assert [len(generation.prompt_ids(loaded, text)) for text in texts] == [41, 4, 12]
    together = generate(loaded, texts, 5)
    for text, result in zip(texts, together, strict=True):
        assert generate(loaded, [text], 5)[0].tokens == result.tokens
        assert len(result.tokens) == 5


@pytest.mark.parametrize("number", [BASE, THINKS])
def test_batches_of_bounded_memory_draw_as_one_batch(models, number, monkeypatch):
    texts = prompts(*range(1, 8))
    sampling = {"temperature": 1.5, "top_p": 0.9, "seed": 3}
    whole = generate(models[number], texts, 5, **sampling)
    monkeypatch.setattr(generation, "_LEAST_BATCH", 3)
    monkeypatch.setattr(generation, "_BATCH_BYTES", 1)
    sizes, original = [], generation.prefill

    def prefill(params, tokens, *arguments, **options):
        sizes.append(len(tokens))
        return original(params, tokens, *arguments, **options)

    monkeypatch.setattr(generation, "prefill", prefill)
    parts = generate(models[number], texts, 5, **sampling)
    assert sizes == [3, 3, 1]
    assert [(p.text, p.tokens, p.thoughts) for p in parts] == [
        (w.text, w.tokens, w.thoughts) for w in whole
    ]
    np.testing.assert_allclose([p.weights for p in parts], [w.weights for w in whole], atol=1e-5)
    sizes.clear()
    generate(models[number], texts, 2, on_step=lambda emitted: None)  # which knows rows by number
    assert sizes == [7]


def test_the_size_of_a_batch_is_bounded(models):
    model = models[BASE].model
    caches = 4 * (2 * model.num_layers * model.num_kv_heads * model.head_dim * 128)
    size = generation._batch_size(model, [[1, 2]], 5)
    assert 0.5 * generation._BATCH_BYTES < size * caches <= generation._BATCH_BYTES
    assert generation._batch_size(model, [[1, 2]], 10**9) == 32


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20])
def test_seeds_that_are_none(models, seed):
    with pytest.raises(UserError, match="seed must be 0 to"):
        generate(models[BASE], ["0"], 1, seed=seed)


@pytest.mark.parametrize("number", [BASE, THINKS])
def test_one_program_serves_all_tokens_and_prompts_of_a_bucket(models, number, caplog):
    """Nothing is compiled as the text grows, nor for prompts and continuations of like length."""

    def compiled(lengths, new):
        caplog.clear()
        with jax.log_compiles():
            generate(models[number], prompts(*lengths), new)
        found = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
        return sorted(name for name in found if name in ("_step", "prefill"))

    jax.clear_caches()
    assert compiled((5, 20), 70) == ["_step", "prefill"]  # grows over several multiples of 32
    assert compiled((9, 2), 90) == []
    assert compiled((40, 7), 60) == ["prefill"]  # longer prompts, caches of the same size
    assert compiled((5, 20), 100) == ["_step", "prefill"]  # larger caches


def test_the_caches_are_written_in_place(models):
    """The program takes over the memory of what it is given, and copies none of it."""
    loaded = models[THINKS]
    rows, cache = 2, 1024
    program = lowered(loaded, rows, cache).compile()
    cursor = cursor_of(loaded, rows, cache)
    held = cursor.key.nbytes + cursor.value.nbytes
    assert program.memory_analysis().alias_size_in_bytes >= held
    shape = re.escape("f32[" + ",".join(map(str, cursor.key.shape)) + "]")
    assert not re.search(rf"= {shape}\S* copy\(", program.as_text())

    options = SETTINGS | {"allowed": loaded.tokenizer.vocab_size}
    generation._step(
        loaded.params,
        cursor,
        jax.random.key(0),
        np.int32(0),
        model=loaded.model,
        thought=loaded.thought,
        **options,
    )
    assert cursor.key.is_deleted() and cursor.value.is_deleted()


def test_thought_free_generation_is_the_base_models_program(models):
    assert jax.tree.structure(models[NTP].params) == jax.tree.structure(models[BASE].params)
    programs = [lowered(models[number]) for number in (BASE, NTP, THINKS)]
    base, ntp, thinking = (program.as_text() for program in programs)
    assert ntp == base != thinking
    base, ntp, _ = (program.compile().as_text() for program in programs)
    assert ntp == base


def test_a_step_is_under_way_before_the_one_ahead_is_read(models, monkeypatch):
    """Also where all rows have ended: then, and only then, one step was in vain."""
    events = []
    step, read = generation._step, generation._read

    def recorded_step(*arguments, **options):
        events.append(f"step {arguments[3]}")
        return step(*arguments, **options)

    def recorded_read(emitted):
        events.append("read")
        return read(emitted)

    monkeypatch.setattr(generation, "_step", recorded_step)
    monkeypatch.setattr(generation, "_read", recorded_read)
    [whole] = generate(models[BASE], prompts(6), 3)
    assert events == ["step 0", "step 1", "read", "step 2", "read", "read"]

    events.clear()
    ending = dataclasses.replace(models[BASE].tokenizer, eos_id=whole.tokens[0])
    seen = []
    [ended] = generate(
        dataclasses.replace(models[BASE], tokenizer=ending), prompts(6), 3, on_step=seen.append
    )
    assert ended.tokens == [] and [emitted.token_B.tolist() for emitted in seen] == [[-1]]
    assert events == ["step 0", "step 1", "read"]


def test_every_end_token_ends_a_text(models):
    model = models[BASE]
    [whole] = generate(model, prompts(6), 6)
    for others in ({whole.tokens[2]}, {whole.tokens[2], 99999}):
        tokenizer = dataclasses.replace(model.tokenizer, eos_id=None, other_ends=frozenset(others))
        [ended] = generate(dataclasses.replace(model, tokenizer=tokenizer), prompts(6), 6)
        assert ended.tokens == whole.tokens[: whole.tokens.index(whole.tokens[2])]
