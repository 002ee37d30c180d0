"""Small valid inputs, broken at random: what benchmarks/fuzz.py feeds to the readers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

TEXTS = (
    "Once upon a time there was a small dog.",
    "naïve 日本語 🙂",
    "12 + 30 = 42",
    "the end  \n",
)
# Imported by the worker's Python path only if an input makes a reader import it.
PAYLOAD = "fuzz_payload"


class Change(NamedTuple):
    """One change of a file.

    Attributes:
      place: where in the file, or which value of its JSON, from 0 to 1.
      how: name of the change.
      value: bytes, a length or a JSON value, as the change needs it.
    """

    place: float
    how: str
    value: Any


class Target(NamedTuple):
    """An input that can be broken, and its reader.

    Attributes:
      make: writes the valid input into an empty folder.
      read: reads it as the programs do; raises UserError to refuse it.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], None]


def changes() -> st.SearchStrategy[list[Change]]:
    """One to three changes of a file: of its bytes, or of a value of its JSON."""
    place = st.floats(0, 1)
    odd = st.sampled_from(
        [
            b"\0" * 8,
            b"\xff" * 8,
            b"\xff" * 7 + b"\x7f",
            b"\0\0\0\x80",
            b"\n",
            b"[" * 5000,
            b"\xd8\x3d",
        ]
    )
    length = st.sampled_from([1, 2, 8, 100, 10_000])
    names = st.sampled_from(
        [
            "../../x",
            "/etc/passwd",
            "",
            "\x1b[2J",
            "\ud800",
            "a\0b",
            "x" * 5000,
            f"{PAYLOAD}.Payload",
        ]
    )
    numbers = st.sampled_from(
        [-1, 0, 1, 2**31, 2**32, 2**63, 10**9, 10**400, 1e308, 0.1, -0.0, math.nan, math.inf]
    )
    scalars = st.one_of(st.none(), st.booleans(), numbers, names)
    nested = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    )
    change = st.one_of(
        st.builds(Change, place, st.just("overwrite"), odd | st.binary(min_size=1, max_size=8)),
        st.builds(Change, place, st.just("insert"), odd),
        st.builds(Change, place, st.just("delete"), length),
        st.builds(Change, place, st.just("repeat"), length),
        st.builds(Change, place, st.just("truncate"), st.none()),
        st.builds(Change, place, st.just("zeros to the end"), st.none()),
        st.builds(Change, place, st.just("json"), nested),
        st.builds(Change, place, st.just("drop from json"), st.none()),
    )
    return st.lists(change, min_size=1, max_size=3)


def apply(data: bytes, change: Change) -> bytes:
    """The content of a file after a change. A change of JSON leaves other files as they are."""
    if change.how in ("json", "drop from json"):
        return _change_json(data, change)
    at = int(change.place * len(data))
    if change.how == "overwrite":
        return data[:at] + change.value + data[at + len(change.value) :]
    if change.how == "insert":
        return data[:at] + change.value + data[at:]
    if change.how == "delete":
        return data[:at] + data[at + change.value :]
    if change.how == "repeat":
        return data[:at] + data[at : at + change.value] * 2 + data[at + change.value :]
    if change.how == "truncate":
        return data[:at]
    return data[:at] + b"\0" * (len(data) - at)


def _change_json(data: bytes, change: Change) -> bytes:
    """Change one value of a JSON file, or of the header of a safetensors file."""
    start, end = 0, len(data)
    if not data.startswith(b"{"):
        start, end = 8, 8 + int.from_bytes(data[:8], "little")
    try:
        value = json.loads(data[start:end].splitlines()[0] if b"}\n{" in data else data[start:end])
    except (ValueError, IndexError, RecursionError):
        return data
    slots = list(_slots(value))
    if not slots:
        return data
    holder, key = slots[min(int(change.place * len(slots)), len(slots) - 1)]
    if change.how == "json":
        holder[key] = change.value
    else:
        del holder[key]
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    if start:
        return len(text).to_bytes(8, "little") + text + data[end:]
    return text + b"\n" + b"".join(data.splitlines(keepends=True)[1:]) if b"}\n{" in data else text


def _slots(value: Any) -> Any:
    """Every (list or dict, index or key) below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _slots(inner)


# Targets --------------------


def checkpoint(folder: Path) -> None:
    """A Hugging Face folder in two shards, with thoughts and a SentencePiece tokenizer."""
    import jax
    import numpy as np

    from fqs_jax import huggingface
    from fqs_jax.curriculum import objective
    from fqs_jax.data import tokenizer_training
    from fqs_jax.model.config import ModelConfig
    from fqs_jax.thinking.config import ThoughtConfig

    words = folder.with_name(f"{folder.name}-words")
    vocabulary = tokenizer_training.train_sentencepiece(TEXTS * 20, words, 300).vocab_size
    model = ModelConfig(
        vocab_size=vocabulary,
        width=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        mlp_dim=24,
        max_seq_len=64,
    )
    thought = ThoughtConfig(n_ahead=5, n_ahead_talk=2)
    numbers = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: numbers.normal(0, 0.4, leaf.shape).astype(np.float32),
        objective.abstract_params(model, thought),
    )
    huggingface.export(
        params["lm"],
        model,
        folder,
        words,
        thought=params["thought"],
        thought_settings=vars(thought),
        max_shard_bytes=20_000,
    )
    shutil.rmtree(words)


def read_checkpoint(folder: Path) -> None:
    """Load a folder, and check that no number and no token id is out of range."""
    import jax
    import numpy as np

    from fqs_jax.runs import loading

    loaded = loading.load(str(folder))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(loaded.params))
    _encode(loaded.tokenizer, loaded.model.vocab_size)


def fast_tokenizer(folder: Path) -> None:
    """A tokenizer.json with added tokens, and the files beside it."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(TEXTS * 20, trainer)
    made.add_special_tokens(["<|im_end|>"])
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "added_tokens_decoder": {"2": {"content": "</s>", "special": True}},
    }
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", {"eos_token": {"content": "</s>"}})
    _write_json(folder / "added_tokens.json", {"<|im_end|>": made.get_vocab_size() - 1})
    _write_json(folder / "generation_config.json", {"eos_token_id": [2, 300]})
    _write_json(folder / "config.json", {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 400})


def sentencepiece(folder: Path) -> None:
    """A tokenizer.model and the files beside it."""
    from fqs_jax.data import tokenizer_training

    tokenizer_training.train_sentencepiece(TEXTS * 20, folder, 300)
    _write_json(folder / "added_tokens.json", {"<|im_end|>": 300})
    _write_json(folder / "config.json", {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 400})


def read_tokenizer(folder: Path) -> None:
    """Load a tokenizer; encode and decode with it."""
    from fqs_jax.data import tokenizer

    _encode(tokenizer.load(folder))


def _encode(loaded: Any, vocabulary: int | None = None) -> None:
    for text in (*TEXTS, "", "a" * 2000, "<|im_end|></s>"):
        ids = loaded.encode(text)
        assert all(i >= 0 and (vocabulary is None or i < vocabulary) for i in ids), ids
        loaded.decode(ids).encode()


def text_files(folder: Path) -> None:
    """One text as lines of JSON, as Parquet, as a saved dataset and as one document."""
    import pyarrow
    from pyarrow import ipc, parquet

    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("\n".join(TEXTS))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "a.jsonl").write_text(lines)
    table = pyarrow.table({"text": list(TEXTS) * 10, "number": list(range(len(TEXTS) * 10))})
    parquet.write_table(table, folder / "a.parquet", row_group_size=7)
    saved = folder / "saved"
    saved.mkdir()
    with ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    _write_json(saved / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    _write_json(saved / "dataset_info.json", {"features": {"text": {"dtype": "string"}}})


def read_text_files(folder: Path) -> None:
    """Read every text of the folder; those that were not broken must come out right."""
    from fqs_jax.data.sources import documents
    from fqs_jax.data.sources.options import Options
    from fqs_jax.runtime.errors import UserError

    refused = []
    for name in ("a.txt", "a.jsonl", "a.parquet", "saved"):
        try:
            documents.read_documents(str(folder / name), "text", Options("text", folder / "cache"))
        except UserError as error:
            refused.append(error)
    assert len(refused) < 2, "a file that was not changed was refused"
    if refused:
        raise refused[0]


def tfds_folder(folder: Path) -> None:
    """A dataset as `prepare` writes it."""
    from fqs_jax.data.sources import tfds_writer
    from fqs_jax.data.sources.options import Options
    from fqs_jax.data.sources.specification import open_sources

    text = folder.with_suffix(".jsonl")
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    [(source, _)] = open_sources(str(text), Options("text"))
    tfds_writer.build_dataset(source, folder, "corpus", 0.0)


def read_tfds_folder(folder: Path) -> None:
    """Read every document of the dataset."""
    from fqs_jax.data.sources import documents

    documents.read_documents(f"tfds:{folder}")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


TARGETS: dict[str, Sequence[Target]] = {
    "import": (Target(checkpoint, read_checkpoint),),
    "tokenizers": (
        Target(fast_tokenizer, read_tokenizer),
        Target(sentencepiece, read_tokenizer),
    ),
    "data": (Target(text_files, read_text_files), Target(tfds_folder, read_tfds_folder)),
}
