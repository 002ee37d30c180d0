"""Exported folders: bit-identical round trips, shards, thoughts, and what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fqs_jax import huggingface
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data import tokenizer_training
from fqs_jax.huggingface import writing
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime.errors import UserError
from tests.checkpoint_folders import (
    LLAMA,
    MISTRAL,
    QWEN2,
    SCALING,
    TIED,
    assert_trees_equal,
    load,
    random_params,
    stored_tensors,
    write_folder,
)
from tests.tiny_runs import FAMILIES, sentences

CARRIED = {
    "tokenizer.model": b"\x00\xff model",
    "tokenizer.json": b"{ }\r\n",
    "tokenizer_config.json": b'{"odd":   1}',
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b"{}",
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "chat_template.jinja": b"{{ x }}",
    "additional_chat_templates/tool.jinja": b"{{ y }}",
    "generation_config.json": b'{"eos_token_id": [1, 2]}',
    "LICENSE": b"terms",
}
LEFT = ("README.md", "pytorch_model.bin", "tokenizer.safetensors", "training_args.bin", "code.py")


@pytest.mark.parametrize(
    "raw", [LLAMA, MISTRAL, QWEN2, TIED], ids=["llama", "mistral", "qwen2", "tied"]
)
@pytest.mark.parametrize("shards", [1, 3])
def test_round_trip_is_bit_identical(tmp_path, raw, shards):
    stored = stored_tensors(raw)
    source = write_folder(tmp_path / "hf", raw, stored, shards)
    (source / "additional_chat_templates").mkdir()
    for name, content in CARRIED.items():
        (source / name).write_bytes(content)
    for name in LEFT:
        (source / name).write_bytes(b"theirs")
    config, params = load(source)
    huggingface.export(params, config, tmp_path / "new" / "out", source)

    out = tmp_path / "new" / "out"
    written = load_file(out / "model.safetensors")
    assert written.keys() == stored.keys()
    for name, array in stored.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    for name, content in CARRIED.items():
        assert (out / name).read_bytes() == content
    expected = {Path(name).parts[0] for name in CARRIED}
    expected |= {"config.json", "model.safetensors", "README.md"}
    assert {path.name for path in out.iterdir()} == expected
    card = (out / "README.md").read_text()
    assert "the folder `hf`" in card and str(tmp_path) not in card and "thought." not in card
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_files_are_as_readable_as_their_folder(tmp_path):
    config = ModelConfig(11, 8, 2, 4, 2, 2, 12)
    huggingface.export(random_params(config), config, tmp_path / "out", max_shard_bytes=2000)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "out").stat().st_mode & 0o666}


def test_tied_source_with_only_a_head_becomes_stock(tmp_path):
    stored = stored_tensors(TIED)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    source = write_folder(tmp_path / "hf", TIED, stored)
    config, params = load(source)
    huggingface.export(params, config, tmp_path / "out", source)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in written
    np.testing.assert_array_equal(written["model.embed_tokens.weight"], stored["lm_head.weight"])


def test_shards_and_index(tmp_path):
    source = write_folder(tmp_path / "hf", QWEN2, stored_tensors(QWEN2))
    config, params = load(source)
    huggingface.export(params, config, tmp_path / "out", source, max_shard_bytes=2000)
    out = tmp_path / "out"
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    stored = stored_tensors(QWEN2)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in stored.values())
    assert set(index["weight_map"]) == set(stored)
    for file in files:
        tensors = load_file(out / file)
        assert sum(array.nbytes for array in tensors.values()) <= 2000
        assert set(tensors) == {name for name, at in index["weight_map"].items() if at == file}
    assert_trees_equal(load(out)[1], params)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    limit=st.integers(1, 100),
)
def test_plan_shards(sizes, limit):
    num_bytes = {str(i): size for i, size in enumerate(sizes)}
    shards = writing.plan_shards(num_bytes, limit)
    assert [name for shard in shards for name in shard] == list(num_bytes)
    for shard, following in zip(shards, [*shards[1:], None], strict=True):
        total = sum(num_bytes[name] for name in shard)
        assert len(shard) == 1 or total <= limit
        assert following is None or total + num_bytes[following[0]] > limit


def test_two_shards_for_the_real_mistral():
    config = ModelConfig(32000, 4096, 32, 32, 8, 128, 14336, sliding_window=4096)
    num_bytes = {
        name: 2 * int(np.prod(shape)) for name, shape in huggingface.tensor_shapes(config).items()
    }
    assert sum(num_bytes.values()) == 14483464192
    assert len(writing.plan_shards(num_bytes, 10e9)) == 2


def test_dtype_follows_the_source_or_the_wish(tmp_path):
    raw = {**LLAMA, "torch_dtype": "bfloat16"}
    stored = {n: a.astype(ml_dtypes.bfloat16) for n, a in stored_tensors(raw).items()}
    source = write_folder(tmp_path / "hf", raw, stored)
    config, params = load(source)
    huggingface.export(params, config, tmp_path / "same", source)
    written = load_file(tmp_path / "same" / "model.safetensors")
    assert all(written[name].tobytes() == stored[name].tobytes() for name in stored)

    huggingface.export(params, config, tmp_path / "wide", source, dtype="float32")
    written = load_file(tmp_path / "wide" / "model.safetensors")
    assert {array.dtype for array in written.values()} == {np.dtype(np.float32)}
    assert json.loads((tmp_path / "wide" / "config.json").read_text()) == {
        **raw,
        "torch_dtype": "float32",
    }

    new_layout = {key: value for key, value in raw.items() if key != "torch_dtype"}
    new_layout["dtype"] = "bfloat16"
    (source / "config.json").write_text(json.dumps(new_layout))
    huggingface.export(params, config, tmp_path / "new", source, dtype="float16")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "float16"
    with pytest.raises(UserError, match="not int8"):
        huggingface.export(params, config, tmp_path / "bad", source, dtype="int8")


def test_jax_arrays_and_views(tmp_path):
    config = ModelConfig(11, 8, 2, 4, 2, 6, 12, qkv_bias=True)
    params = random_params(config)
    on_device = jax.tree.map(jnp.asarray, params)
    views = jax.tree.map(lambda a: np.ascontiguousarray(a.T).T, params)
    for name, tree in (("numpy", params), ("jax", on_device), ("views", views)):
        huggingface.export(tree, config, tmp_path / name)
        assert_trees_equal(load(tmp_path / name)[1], params)


@pytest.mark.parametrize(
    ("change", "model_type"),
    [
        ({}, "llama"),
        ({"rope_scaling": SCALING, "rope_theta": 5e5, "norm_eps": 1e-6}, "llama"),
        ({"tied_embeddings": True, "head_dim": 6}, "llama"),
        ({"sliding_window": 6}, "mistral"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qkv_bias": True, "sliding_window": 6, "tied_embeddings": True}, "qwen2"),
    ],
)
def test_new_config_describes_the_model(tmp_path, change, model_type):
    config = dataclasses.replace(ModelConfig(11, 8, 2, 4, 2, 2, 12, max_seq_len=64), **change)
    huggingface.export(random_params(config), config, tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["model_type"] == model_type
    assert huggingface.read_config(tmp_path / "out") == config
    assert raw == huggingface.write_config(config, "float32", {})


# What transformers 5 calls otherwise, or keeps in one entry; it, vLLM and older ones read these.
OLDER_KEYS = {"torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq"}
OLDER_KEYS |= {"sliding_window_pattern"}
LAYERED = {"sliding_window": 6, "layer_types": ("sliding", "full")}
OLMO = {"norms": "after", "qk_norm": "projection"}
GEMMA = {
    "qk_norm": "head",
    "norms": "both",
    "activation": "gelu_tanh",
    "scaled_embeddings": True,
    "stored_norm_offset": 1.0,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rope_scaling": SCALING}, "Llama"),
        ({"sliding_window": 6}, "Mistral"),
        ({"qkv_bias": True}, "Qwen2"),
        ({"qkv_bias": True, "sliding_window": 6}, "Qwen2"),
        ({"qkv_bias": True, "o_bias": True}, "Llama"),
        (
            {"qk_norm": "head", "sliding_window": 6, "layer_types": ("full", "sliding", "sliding")},
            "Qwen3",
        ),
        ({"layer_types": ("full", "no_rope")}, "SmolLM3"),
        (OLMO, "Olmo2"),
        (OLMO | LAYERED | {"local_rope_theta": 10000.0}, "Olmo3"),
        (GEMMA | LAYERED | {"local_rope_theta": 3.0}, "Gemma3"),
    ],
)
def test_folders_are_what_the_stock_architecture_expects(tmp_path, change, name, dtype, tied):
    """Every key of config.json is known, and every tensor has the name, shape and type it should."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(11, 8, 3, 4, 2, 2, 12, max_seq_len=64, tied_embeddings=tied, **change)
    out = tmp_path / "out"
    huggingface.export(random_params(config), config, out, dtype=dtype, max_shard_bytes=1000)
    raw = json.loads((out / "config.json").read_text())
    stock = transformers.AutoConfig.from_pretrained(out)
    part = "Text" if name == "Gemma3" else ""
    assert type(stock) is getattr(transformers, f"{name}{part}Config")
    assert raw["architectures"] == [f"{name}ForCausalLM"]
    # Qwen2's has no head_dim of its own, but its model asks for one.
    known = {*type(stock)().to_dict(), *OLDER_KEYS, "head_dim"}
    assert set(raw) - known == set()

    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(stock)
    expected = {
        key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for key, tensor in theirs.state_dict().items()
        if not (tied and key == "lm_head.weight")  # the table of embeddings, as they save it too
    }
    index = json.loads((out / "model.safetensors.index.json").read_text())
    written = {
        key: (array.shape, str(array.dtype))
        for file in set(index["weight_map"].values())
        for key, array in load_file(out / file).items()
    }
    assert written == expected and index["weight_map"].keys() == expected.keys()


def test_a_model_that_no_architecture_computes(tmp_path):
    for change in ({"activation": "gelu_tanh"}, {"o_bias": True}, LAYERED):
        config = ModelConfig(11, 8, 3, 4, 2, 2, 12, **change)
        with pytest.raises(UserError, match="no architecture of transformers computes this model"):
            huggingface.export(random_params(config), config, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def random_thought(width: int) -> decoder.Params:
    rng = np.random.default_rng(1)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    return {
        "start": array(width),
        "end": array(width),
        "talk_head": {
            "hidden_1": {"kernel": array(width, 2 * width).T, "bias": array(width)},
            "hidden_2": {"kernel": array(width, width), "bias": array(width)},
            "out": {"kernel": array(width, 1)},
        },
    }


def test_thoughts_in_a_file_of_their_own(tmp_path):
    config = ModelConfig(11, 8, 2, 4, 2, 2, 12)
    params, thought = random_params(config), random_thought(8)
    huggingface.export(params, config, tmp_path / "out", thought=thought)
    out = tmp_path / "out"
    assert set(load_file(out / "thought.safetensors")) == {
        "start",
        "end",
        "talk_head.hidden_1.kernel",
        "talk_head.hidden_1.bias",
        "talk_head.hidden_2.kernel",
        "talk_head.hidden_2.bias",
        "talk_head.out.kernel",
    }
    shapes = {
        name: array.shape for name, array in traverse_util.flatten_dict(thought, sep=".").items()
    }
    assert_trees_equal(huggingface.load_thought(out, shapes), thought)
    assert_trees_equal(load(out)[1], params)
    # Loaders that take every safetensors file of a folder are told which ones are weights.
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model.safetensors"}
    card = (out / "README.md").read_text()
    assert "thought.safetensors" in card and "**without** thoughts" in card

    huggingface.export(params, config, tmp_path / "plain")
    assert huggingface.load_thought_settings(tmp_path / "plain", 11) is None
    (out / "thought.safetensors").write_bytes(b"\x00" * 4)
    with pytest.raises(UserError, match="thought.safetensors is damaged"):
        huggingface.load_thought(out, shapes)


def test_out_must_be_free(tmp_path):
    config = ModelConfig(11, 8, 2, 4, 2, 2, 12)
    params = random_params(config)
    (tmp_path / "empty").mkdir()
    huggingface.export(params, config, tmp_path / "empty")
    for taken in (tmp_path / "empty", tmp_path / "empty" / "config.json"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match="exists already"):
            huggingface.export(params, config, taken)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="cannot write"):
        huggingface.export(params, config, tmp_path / "empty" / "config.json" / "out")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_interrupted_export_leaves_nothing(tmp_path, monkeypatch, error):
    config = ModelConfig(11, 8, 2, 4, 2, 2, 12)

    def fail(*args: object, **kwargs: object) -> None:
        raise error("no more")

    monkeypatch.setattr(writing.model_card, "text", fail)  # the last thing that is written
    with pytest.raises(UserError if error is OSError else error):
        huggingface.export(random_params(config), config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_params_must_fit(tmp_path):
    config = ModelConfig(11, 8, 2, 4, 2, 2, 12)
    lacking = random_params(config)
    del lacking["layers"]["o"]
    with pytest.raises(UserError, match=r"lack layers/o/kernel of shape \(2, 4, 2, 8\)"):
        huggingface.export(lacking, config, tmp_path / "out")
    tied = dataclasses.replace(config, tied_embeddings=True)
    with pytest.raises(UserError, match="have head/kernel, which the model configuration lacks"):
        huggingface.export(random_params(config), tied, tmp_path / "out")
    wide = dataclasses.replace(config, vocab_size=12)
    with pytest.raises(UserError, match=r"embed/embedding has shape \(11, 8\)"):
        huggingface.export(random_params(config), wide, tmp_path / "out")
    source = write_folder(tmp_path / "hf", {**LLAMA, "rope_theta": 5.0}, stored_tensors(LLAMA))
    three = dataclasses.replace(config, num_layers=3)
    with pytest.raises(UserError, match="implies rope_theta 5.0, but the model has 10000.0"):
        huggingface.export(random_params(three), three, tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


def test_compute_settings_need_not_match_the_source(tmp_path):
    source = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA))
    config, params = load(source)
    other = dataclasses.replace(config, max_seq_len=16, dtype="bfloat16", remat="none")
    huggingface.export(params, other, tmp_path / "out", source)
    assert huggingface.read_config(tmp_path / "out") == config


def test_real_checkpoints_are_rewritten_bit_for_bit(shared, tmp_path):
    for name in ("llama", "mistral", "qwen2"):
        source = shared / "real" / "checkpoints" / f"stories260K-{name}"
        config, params = load(source)
        huggingface.export(params, config, tmp_path / name, source)
        ours = load_file(tmp_path / name / "model.safetensors")
        theirs = load_file(source / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
        for path in source.iterdir():
            if path.name not in ("model.safetensors", "README.md"):
                assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()


def test_source_that_is_only_a_tokenizer(tmp_path):
    tokenizer = tokenizer_training.train_sentencepiece(["the cat sat"] * 9, tmp_path / "words", 270)
    config = ModelConfig(270, 8, 2, 4, 2, 2, 12, tied_embeddings=True)
    huggingface.export(random_params(config), config, tmp_path / "out", tmp_path / "words")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (1, 2, None)
    assert tokenizer_lib.load(tmp_path / "out").encode("the cat") == tokenizer.encode("the cat")
    assert "only the tokenizer in the folder `words`" in (tmp_path / "out/README.md").read_text()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no tokenizer"):
        huggingface.export(random_params(config), config, tmp_path / "two", tmp_path / "nothing")


CLOCK = tuple(f"\u2581{piece}" for piece in ("0", "1", "2", "3", "+1", "+3", "*2", "-2", "=", ":"))
ODD_TEXTS = (
    *(
        "",
        " ",
        "\n",
        "the cat",
        " the  cat ",
        "a\n\n b\tc\r\n",
        "3 + 1",
        "3 +1 = 0 : 2",
        "3+1=0",
        "+12",
    ),
    *(
        "<s> x </s>",
        "<unk>",
        "<0x0A>",
        "zółw 龟 \U0001f600",
        "e\u0301é",
        "x\u2581y",
        "\u2581the",
        "<think>the",
    ),
)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byte_fallback": False, "vocab_size": 50},
        {"user_defined_symbols": ["<think>", "\u2581the\u2581cat", "og", "a"]},
        {"byte_fallback": False, "vocab_size": 13, "user_defined_symbols": CLOCK},
    ],
    ids=["bytes", "unknown", "symbols", "clock"],
)
def test_transformers_reads_our_tokenizers_as_we_do(tmp_path, options, family):
    transformers = pytest.importorskip("transformers")
    clock = options.get("user_defined_symbols") == CLOCK
    lines = ["0 +1 = 1", "2 *2 = 3 -2 = 1 +3 :"] if clock else sentences(200)
    tokenizer = tokenizer_training.train_sentencepiece(
        lines, tmp_path / "words", **{"vocab_size": 310} | options
    )
    config = ModelConfig(tokenizer.vocab_size, 8, 2, 4, 2, 2, 12, **FAMILIES[family])
    huggingface.export(random_params(config), config, tmp_path / "out", tmp_path / "words")
    # For Qwen2 AutoTokenizer takes that model's own tokenizer, whatever the folder asks for.
    qwen2 = family == "qwen2"
    kind = transformers.PreTrainedTokenizerFast if qwen2 else transformers.AutoTokenizer
    theirs = kind.from_pretrained(tmp_path / "out")
    rng = np.random.default_rng(0)
    letters = list("".join(lines) + " \n<>é龟0123")
    texts = ["".join(rng.choice(letters, rng.integers(1, 30))) for _ in range(200)]
    texts += [*ODD_TEXTS, *lines, "\n".join(lines)]
    for text in texts:
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs.encode(text) == [1, *ids], text
    for text in lines:
        assert theirs.decode(theirs.encode(text), skip_special_tokens=True) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (1, 2, 0)
    ours = tokenizer_lib.load(tmp_path / "out")
    assert (ours.opening, ours.encode(texts[0])) == ([1], tokenizer.encode(texts[0]))


def test_other_tokenizers_are_passed_on_as_they_came(tmp_path):
    source = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA))
    config, params = load(source)
    tokenizer_training.train_sentencepiece(["the cat sat"] * 9, source, 270)
    settings = source / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("true", "false"))
    huggingface.export(params, config, tmp_path / "out", source)
    assert (tmp_path / "out" / settings.name).read_bytes() == settings.read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_card_names_the_hub_but_no_private_path(tmp_path):
    for recorded, shown in (("org/model-1B", "`org/model-1B`"), ("/home/me/model", "folder `hf`")):
        raw = {**LLAMA, "_name_or_path": recorded}
        source = write_folder(tmp_path / "hf", raw, stored_tensors(raw))
        config, params = load(source)
        out = tmp_path / recorded.replace("/", "-")
        huggingface.export(params, config, out, source)
        card = (out / "README.md").read_text()
        assert shown in card and "/home/me" not in card
    huggingface.export(params, config, tmp_path / "named", source, base="stage 3 of a run")
    assert "- Base: stage 3 of a run\n" in (tmp_path / "named" / "README.md").read_text()
