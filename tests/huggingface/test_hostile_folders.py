"""Weights that are no numbers, broken thought parameters, links out of a folder, text with markup."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fqs_jax import huggingface
from fqs_jax.huggingface import carrying, config_writing, finite, model_card, thoughts
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig
from tests.checkpoint_folders import (
    LLAMA,
    MISTRAL,
    QWEN2,
    SCALING,
    TIED,
    config_of,
    load,
    random_params,
    stored_tensors,
    write_folder,
)

SMALL = ModelConfig(11, 8, 2, 4, 2, 2, 12)
TYPES = [np.float32, ml_dtypes.bfloat16, np.float16]

# Numbers --------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named(tmp_path, dtype, value):
    stored = {name: array.astype(dtype) for name, array in stored_tensors(LLAMA).items()}
    stored["model.layers.1.mlp.up_proj.weight"][2, 3] = value
    folder = write_folder(tmp_path / "hf", LLAMA, stored, shards=2)
    nans = int(np.isnan(value))
    expected = (
        rf"model-0000\d-of-00002.safetensors: tensor model.layers.1.mlp.up_proj.weight has {nans} NaN "
        rf"and {1 - nans} infinite of 96 values, the first at \[2, 3\]"
    )
    with pytest.raises(UserError, match=expected) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_embeddings_of_some_tokens_may_be_broken(tmp_path, capfd):
    """Texts without those tokens have their loss; a table that is the output head too has none."""
    stored = stored_tensors(LLAMA)
    stored["model.embed_tokens.weight"][[3, 7]] = np.nan
    config, params = load(write_folder(tmp_path / "hf", LLAMA, stored))
    note = capfd.readouterr().err
    assert (
        "embed_tokens.weight has NaN or infinite values in 2 of" in note and "tokens 3, 7" in note
    )
    huggingface.export(params, config, tmp_path / "out", dtype="bfloat16")

    broken = {**params, "embed": {"embedding": params["embed"]["embedding"] * np.nan}}
    with pytest.raises(UserError, match="tensor model.embed_tokens.weight has the value nan"):
        huggingface.export(broken, config, tmp_path / "broken")

    stored["model.embed_tokens.weight"][:] = np.inf
    with pytest.raises(UserError, match="embed_tokens.weight has 0 NaN and"):
        load(write_folder(tmp_path / "all", LLAMA, stored))

    stored = stored_tensors(TIED)
    stored["model.embed_tokens.weight"][3] = np.nan
    with pytest.raises(UserError, match="embed_tokens.weight has"):
        load(write_folder(tmp_path / "tied", TIED, stored))


@pytest.mark.parametrize("dtype", TYPES)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_finiteness_by_bits_is_that_by_value(dtype, bits):
    size = np.dtype(dtype).itemsize
    values = np.array(bits, np.uint32).astype(f"u{size}").view(dtype)
    refused = False
    try:
        finite.check_finite(values, "x")
    except UserError:
        refused = True
    assert refused == (not np.isfinite(values.astype(np.float32)).all())


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (65519.0, "float16", True),  # rounds to the largest one
        (-65520.0, "float16", False),
        (1e5, "float16", False),
        (1e5, "bfloat16", True),
        (3.4e38, "bfloat16", False),  # beyond the largest bfloat16, although float32 has it
        (-3.4e38, "float32", True),
        (np.nan, "float32", False),
        (-np.inf, "float32", False),
    ],
)
def test_narrowing(value, dtype, fits, as_array):
    array = as_array(np.array([[1.0, value], [0.0, -2.0]], np.float32))
    if fits:
        finite.check_fits(array, dtype, "x")
    else:
        with pytest.raises(UserError, match="x has the value"):
            finite.check_fits(array, dtype, "x")


def test_an_export_never_overflows(tmp_path):
    params = random_params(SMALL)
    params["layers"]["up"]["kernel"][1, 3, 4] = -1e5
    name = "model.layers.1.mlp.up_proj.weight"
    message = rf"tensor {name} has the value -100000, which is infinite in float16 .*65504"
    with pytest.raises(UserError, match=message):
        huggingface.export(params, SMALL, tmp_path / "out", dtype="float16")
    assert list(tmp_path.iterdir()) == []
    huggingface.export(params, SMALL, tmp_path / "out", dtype="bfloat16")
    with pytest.raises(UserError, match="layers/up/kernel of layer 1 has the value -99"):
        load(tmp_path / "out", "float16")
    params["final_norm"]["scale"][0] = np.nan
    with pytest.raises(UserError, match="tensor model.norm.weight has the value nan"):
        huggingface.export(params, SMALL, tmp_path / "nan")
    with pytest.raises(UserError, match="parameter thought.start has the value inf"):
        thought = {"start": np.full(8, np.inf, np.float32)}
        huggingface.export(random_params(SMALL), SMALL, tmp_path / "nan", thought=thought)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# config.json and tokenizer_config.json of exports --------------------


def read_by_version_4(raw: dict[str, Any]) -> tuple[Any, ...]:
    """What transformers 4.40 to 4.55 take from config.json."""
    return raw.get("rope_theta", 10000.0), raw.get("rope_scaling"), raw.get("torch_dtype")


NEW = {key: value for key, value in LLAMA.items() if key != "torch_dtype"} | {"dtype": "float32"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("raw", "old"),
    [
        (LLAMA, (1e4, None, "float32")),
        ({**LLAMA, "rope_theta": 5e5}, (5e5, None, "float32")),
        ({**LLAMA, "rope_scaling": LLAMA3}, (1e4, LLAMA3, "float32")),
        ({**NEW, "rope_parameters": {"rope_theta": 5e5}}, (5e5, None, "float32")),
        ({**NEW, "rope_parameters": {"rope_theta": 9.0, **LLAMA3}}, (9.0, LLAMA3, "float32")),
        (
            {**LLAMA, "rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}},
            (2.0, None, "float32"),
        ),
        ({**LLAMA, "rope_scaling": {"rope_theta": 7.0, **LLAMA3}}, (7.0, LLAMA3, "float32")),
        ({**LLAMA, "dtype": "float32", "torch_dtype": "float16"}, (1e4, None, "float32")),
    ],
)
def test_old_and_new_versions_read_an_export_alike(tmp_path, raw, old):
    source = write_folder(tmp_path / "hf", raw, stored_tensors(raw))
    config, params = load(source)
    huggingface.export(params, config, tmp_path / "out", source)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert read_by_version_4(written) == old
    assert huggingface.read_config(tmp_path / "out") == config
    assert config_writing.stored_dtype(written) == "float32"
    if "rope_parameters" in written:
        theta, scaling, _ = old
        kind = scaling or {"rope_type": "default"}
        assert written["rope_parameters"] == {**kind, "rope_theta": theta}


@pytest.mark.parametrize("scaling", [None, SCALING])
def test_a_new_config_has_both_spellings(scaling):
    config = dataclasses.replace(SMALL, rope_theta=5e5, rope_scaling=scaling)
    raw = huggingface.write_config(config, "bfloat16", {})
    assert read_by_version_4(raw) == (5e5, LLAMA3 if scaling else None, "bfloat16")
    assert raw["dtype"] == "bfloat16" and raw["rope_parameters"]["rope_theta"] == 5e5
    assert raw["rope_parameters"]["rope_type"] == ("llama3" if scaling else "default")


def test_written_json_is_json(tmp_path):
    raw = {**LLAMA, "odd": [float("nan"), {"a": float("inf")}], "half": "\ud800"}
    source = write_folder(tmp_path / "hf", raw, stored_tensors(raw))
    config, params = load(source)
    huggingface.export(params, config, tmp_path / "out", source)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "out" / "config.json").read_text(encoding="utf-8")
    written = json.loads(text, parse_constant=refuse)
    assert written == {**raw, "odd": [None, {"a": None}]}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "LlamaTokenizer"}),
        (
            {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]},
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "additional_special_tokens": ["<a>"],
            },
        ),
    ],
)
def test_the_tokenizer_class_is_known_to_all_versions(tmp_path, theirs, ours):
    source = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA))
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer_config.json").write_text(json.dumps(theirs))
    config, params = load(source)
    huggingface.export(params, config, tmp_path / "out", source)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == ours


# Safetensors --------------------


def test_special_files_are_no_weights(tmp_path):
    config = config_of(tmp_path, LLAMA)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} is a named pipe, not a file"):
            huggingface.load_params(tmp_path, config)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/dev/zero")
        with pytest.raises(UserError, match=f"{name} is a device, not a file"):
            huggingface.load_params(tmp_path, config)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "shard",
    ["..", ".", "", "a/b.safetensors", "/etc/passwd", "../x.safetensors", "a\0.safetensors"],
)
def test_shard_names_stay_in_the_folder(tmp_path, shard):
    config = config_of(tmp_path, LLAMA)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError, match="which is not a file name"):
        huggingface.load_params(tmp_path, config)
    for odd in (5, ["x"], {"a": 1}, "pytorch_model.bin", "x\n\x1b[2J" * 999):
        index.write_text(json.dumps({"weight_map": {"a": odd}}))
        with pytest.raises(UserError, match="and only safetensors is read") as caught:
            huggingface.load_params(tmp_path, config)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["a\n\x1b[2J\u202e", "x" * 100_000])
def test_tensor_names_are_shown_on_one_short_line(tmp_path, name):
    stored = {**stored_tensors(LLAMA), name: np.zeros(1, np.float32)}
    folder = write_folder(tmp_path / "hf", LLAMA, stored)
    with pytest.raises(UserError, match="is not one of this architecture") as caught:
        load(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("end", ["qweight", "weight.absmax", "weight_scale", "SCB"])
def test_quantised_tensors_are_named(tmp_path, end):
    name = f"model.layers.0.mlp.up_proj.{end}"
    stored = {**stored_tensors(LLAMA), name: np.zeros(1, np.int32)}
    with pytest.raises(UserError, match=f"{name} belongs to quantised weights"):
        load(write_folder(tmp_path / "hf", LLAMA, stored))


def test_layer_numbers_are_plain_numbers(tmp_path):
    for number in ("00", "-1", "1e0", "٣", "9" * 5000):
        stored = stored_tensors(LLAMA)
        stored[f"model.layers.{number}.input_layernorm.weight"] = np.zeros(8, np.float32)
        with pytest.raises(UserError, match="is not one of this architecture"):
            load(write_folder(tmp_path / "hf", LLAMA, stored))


# Thought parameters --------------------

SHAPES = {"start": (8,), "end": (8,), "talk_head.out.kernel": (8, 1)}
SETTINGS = dataclasses.asdict(ThoughtConfig(n_ahead=5, masked_ids=(4, 2)))


def write_thought(folder: Path, settings: Any = SETTINGS, **changes: Any) -> Path:
    arrays = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()} | changes
    text = settings if isinstance(settings, str) else json.dumps(settings)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    save_file(arrays, folder / "thought.safetensors", metadata={"settings": text})
    return folder


def test_every_setting_of_thoughts_is_read(tmp_path):
    fields = {field.name for field in dataclasses.fields(ThoughtConfig)}
    assert {*thoughts.SETTINGS, "masked_ids"} == fields
    read = huggingface.load_thought_settings(write_thought(tmp_path), 11)
    assert read is not None
    assert ThoughtConfig(**read) == ThoughtConfig(n_ahead=5, masked_ids=(4, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "should be a JSON object"),
        ("{}", "'n_ahead' is missing"),
        ({**SETTINGS, "n_ahead": None}, "'n_ahead' is missing"),
        ({**SETTINGS, "n_ahead": 10**9}, "n_ahead should be at most 1024"),
        ({**SETTINGS, "n_ahead": 5.5}, "n_ahead should be an integer"),
        ({**SETTINGS, "n_ahead": True}, "n_ahead should be a number"),
        ({**SETTINGS, "n_ahead": "5"}, "n_ahead should be a number"),
        ({**SETTINGS, "n_ahead_talk": 10**400}, "n_ahead_talk should be at most"),
        ({**SETTINGS, "rationales": 0}, "rationales should be at least 1"),
        ({**SETTINGS, "temperature": float("nan")}, "temperature should be a number, found nan"),
        ({**SETTINGS, "temperature": -1}, "temperature should be at least 0"),
        ({**SETTINGS, "temperature": 1e-40}, "temperature should be 0 or at least"),
        ({**SETTINGS, "reinforce_temperature": 0}, "reinforce_temperature should be at least"),
        ({**SETTINGS, "embedding_scale": float("inf")}, "embedding_scale should be a number"),
        ({**SETTINGS, "embedding_scale": 0}, "embedding_scale should be at least"),
        ({**SETTINGS, "mixing": 5}, "mixing should be a text"),
        ({**SETTINGS, "mixing_bias": "0"}, "mixing_bias should be a number"),
        ({**SETTINGS, "masked_ids": 4}, "masked_ids should be a list"),
        ({**SETTINGS, "masked_ids": [4, 11]}, r"masked_ids\[1\] should be at most 10"),
        ({**SETTINGS, "masked_ids": [-1]}, r"masked_ids\[0\] should be at least 0"),
        ({**SETTINGS, "masked_ids": ["a"]}, r"masked_ids\[0\] should be a number"),
        ({**SETTINGS, "future\x1b[2J": 1}, r"'future\\x1b\[2J' is not known to this version"),
    ],
)
def test_settings_of_thoughts_are_checked(tmp_path, settings, message):
    with pytest.raises(UserError, match=f"thought.safetensors: its settings .*{message}") as caught:
        huggingface.load_thought_settings(write_thought(tmp_path, settings), 11)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": None}, r"tensor start of shape \(8,\) is missing"),
        ({"pause": np.ones(8, np.float32)}, "tensor pause is not one of these thoughts"),
        ({"a\x1b": np.ones(8, np.float32)}, r"tensor a\\x1b is not one"),
        ({"end": np.ones(9, np.float32)}, r"tensor end has shape \(9,\), the model implies \(8,\)"),
        ({"end": np.ones(8, np.int32)}, "tensor end has type I32"),
        ({"end": np.full(8, np.nan, np.float32)}, "tensor end has 8 NaN and 0 infinite of 8"),
        ({"end": np.full(8, np.inf, np.float16)}, "tensor end has 0 NaN and 8 infinite of 8"),
    ],
)
def test_thought_parameters_are_checked(tmp_path, changes, message):
    assert huggingface.load_thought(write_thought(tmp_path), SHAPES)["start"].shape == (8,)
    with pytest.raises(UserError, match=f"thought.safetensors: {message}"):
        huggingface.load_thought(write_thought(tmp_path, **changes), SHAPES)


def test_thought_parameters_in_a_special_file(tmp_path):
    os.mkfifo(tmp_path / "thought.safetensors")
    with pytest.raises(UserError, match="thought.safetensors is a named pipe"):
        huggingface.load_thought_settings(tmp_path, 11)
    (tmp_path / "thought.safetensors").unlink()
    (tmp_path / "thought.safetensors").symlink_to("nowhere")
    with pytest.raises(UserError, match="thought.safetensors: no such file"):
        huggingface.load_thought_settings(tmp_path, 11)


# Links --------------------


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_text("SECRET")
    return tmp_path / "home" / "id_rsa"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "LICENSE",
            "NOTICE.txt",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ),
        *("special_tokens_map.json", "generation_config.json", "vocab.txt", "tokenizer.secret"),
    ],
)
def test_links_out_of_the_folder_are_not_copied(tmp_path, secret, name):
    source = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA))
    (source / name).symlink_to(secret)
    config, params = load(source)
    message = f"{name} is a link to a file outside of its folder, which is not copied"
    with pytest.raises(UserError, match=message):
        huggingface.export(params, config, tmp_path / "out", source)
    (source / name).unlink()
    (source / name).symlink_to("nowhere")
    with pytest.raises(UserError, match=f"{name} is a link to nothing"):
        huggingface.export(params, config, tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


def test_a_linked_folder_or_config_is_not_copied_either(tmp_path, secret):
    source = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA))
    config, params = load(source)
    (source / "additional_chat_templates").symlink_to(secret.parent)
    with pytest.raises(UserError, match="id_rsa is a link to a file outside"):
        huggingface.export(params, config, tmp_path / "out", source)
    (source / "additional_chat_templates").unlink()
    (source / "config.json").rename(secret.parent / "config.json")
    (source / "config.json").symlink_to(secret.parent / "config.json")
    load(source)  # reading is allowed
    with pytest.raises(UserError, match="config.json is a link to a file outside"):
        huggingface.export(params, config, tmp_path / "out", source)


def hub_cache(place: Path) -> Path:
    """A model as the Hugging Face hub's client keeps it: links to blobs named by their digests."""
    repository = place / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    write_folder(place / "plain", LLAMA, stored_tensors(LLAMA))
    (place / "plain" / "LICENSE").write_text("terms")
    for number, path in enumerate(sorted((place / "plain").iterdir())):
        path.rename(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_cache_of_the_hub_is_one_folder(tmp_path, secret):
    snapshot = hub_cache(tmp_path / "hub")
    config, params = load(snapshot)
    huggingface.export(params, config, tmp_path / "out", snapshot)
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    assert not (tmp_path / "out" / "LICENSE").is_symlink()
    (tmp_path / "named").symlink_to(snapshot)
    huggingface.export(params, config, tmp_path / "out_2", tmp_path / "named")
    for outside in (secret, tmp_path / "hub" / "models--other--x" / "blobs" / "1"):
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_text("SECRET")
        (snapshot / "NOTICE").unlink(missing_ok=True)
        (snapshot / "NOTICE").symlink_to(outside)
        with pytest.raises(UserError, match="NOTICE is a link to a file outside"):
            huggingface.export(params, config, tmp_path / "out_3", snapshot)


def test_links_inside_the_folder_are_copied_as_files(tmp_path):
    source = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA))
    (source / "legal").mkdir()
    (source / "legal" / "terms").write_text("terms")
    (source / "LICENSE").symlink_to("legal/terms")
    (tmp_path / "out").mkdir()
    huggingface.carry(source, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    assert not (tmp_path / "out" / "LICENSE").is_symlink()


def test_carried_files_have_a_largest_size(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "hf", LLAMA, stored_tensors(LLAMA))
    with (source / "tokenizer.bak").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(UserError, match="tokenizer.bak is larger than 64 MiB"):
        huggingface.check_carried(source)
    with pytest.raises(UserError, match="tokenizer.bak is larger than 64 MiB"):
        huggingface.carry(source, tmp_path)
    (source / "tokenizer.bak").unlink()
    os.mkfifo(source / "LICENSE")
    with pytest.raises(UserError, match="LICENSE is a named pipe"):
        huggingface.check_carried(source)
    assert all(most <= 64 << 20 for most in carrying.CARRIED.values())


# Model cards --------------------


@pytest.mark.parametrize(
    "name", ["<script>x", "[a](http://b)", "# a", "a|b", "**a**", "a\n# b", "`a`"]
)
def test_names_have_no_markup_in_a_card(tmp_path, name):
    shown = model_card.escaped(name)
    assert shown.isprintable() and "`" not in model_card.code(name)[1:-1]
    source = write_folder(tmp_path / name.replace("/", "-"), LLAMA, stored_tensors(LLAMA))
    config, params = load(source)
    out = tmp_path / "out" / name.replace("/", "-")
    huggingface.export(params, config, out, source)
    card = (out / "README.md").read_text()
    assert "<script>x" not in card.replace("`<script>x`", "") and "\n# b" not in card
    assert "[a](" not in card.replace("`[a](", "")


def test_a_recorded_name_with_markup_is_not_shown(tmp_path):
    for recorded in ("a/<b>", "a/b` <img src=x>", "a/b\n# c", "../b", 5, ["a/b"]):
        raw = {**LLAMA, "_name_or_path": recorded}
        source = write_folder(tmp_path / "hf", raw, stored_tensors(raw))
        assert model_card.base_of(source) == "the folder `hf`"


def test_all_families_are_exported_with_numbers_in_range(tmp_path):
    for raw in (LLAMA, MISTRAL, QWEN2):
        source = write_folder(tmp_path / raw["model_type"], raw, stored_tensors(raw))
        config, params = load(source)
        out = tmp_path / "out" / raw["model_type"]
        huggingface.export(params, config, out, source, dtype="float16")
        for array in load_file(out / "model.safetensors").values():
            assert np.isfinite(array).all()
