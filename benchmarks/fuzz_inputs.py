"""Small valid inputs and their readers: what benchmarks/fuzz.py breaks and reads."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TEXTS = (
    "Once upon a time there was a small dog.",
    "naïve 日本語 🙂",
    "12 + 30 = 42",
    "the end  \n",
)


STRINGS = ("string", "large", "view", "dictionary", "null")  # ways to keep strings


class Target(NamedTuple):
    """An input that can be broken, and its reader.

    Attributes:
      make: writes the valid input into an empty folder.
      read: reads it as the programs do; raises UserError to refuse it.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], None]


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
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
        finite = np.isfinite(np.asarray(leaf))
        # Embeddings of some tokens may be broken, with a note: texts without them are not concerned.
        is_table = path[-1].key == "embedding"
        assert finite.all(axis=-1).mean() >= 0.5 if is_table else finite.all(), path
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


def gguf_file(folder: Path) -> None:
    """A tiny Llama as a GGUF file."""
    from gguf import GGMLQuantizationType

    from tests import gguf_models

    folder.mkdir(parents=True)
    values, arrays = gguf_models.metadata("llama"), gguf_models.tensors("llama")
    gguf_models.write(folder / "model.gguf", values, arrays, GGMLQuantizationType.Q8_0)


def read_gguf_file(folder: Path) -> None:
    """Convert the file, and read the folder that comes out."""
    from fqs_jax import gguf_files

    out = folder.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    gguf_files.convert(folder / "model.gguf", out)
    read_checkpoint(out)


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


def table(kind: str, layout: str, folder: Path) -> None:
    """One column of texts and nulls in a file.

    Args:
      kind: how the column keeps its strings, an entry of STRINGS.
      layout: "parquet", or "stream" or "file" for the two formats of a saved dataset.
      folder: where the file is written.
    """
    import pyarrow
    from pyarrow import ipc, parquet

    texts = [None if i % 7 == 0 else f"text {i % 5} été " * (i % 9) for i in range(60)]
    types = {
        "string": pyarrow.string(),
        "large": pyarrow.large_string(),
        "view": pyarrow.string_view(),
        "dictionary": pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
        "null": pyarrow.null(),
    }
    column = pyarrow.nulls(60) if kind == "null" else pyarrow.array(texts).cast(types[kind])
    content = pyarrow.table({"text": column, "n": range(60)})
    folder.mkdir(parents=True)
    if layout == "parquet":
        compression = {"string": "none", "large": "snappy"}.get(kind, "zstd")
        parquet.write_table(
            content, folder / "a.parquet", row_group_size=25, compression=compression
        )
        return
    new = ipc.new_stream if layout == "stream" else ipc.new_file
    with new(folder / "a.arrow", content.schema) as writer:
        writer.write_table(content, max_chunksize=20)
    _write_json(folder / "state.json", {"_data_files": [{"filename": "a.arrow"}]})


def read_table(folder: Path) -> None:
    """Read every text of a file."""
    from fqs_jax.data.sources import tables
    from fqs_jax.data.sources.options import Options

    path, options = folder / "a.parquet", Options(cache=folder / "cache")
    if path.exists():
        found = tables.open_parquet([path], "text", options)
    else:
        found = tables.open_saved_dataset(folder, "", "text", options)
    for one in found:
        for row in range(len(one)):
            one[row].encode()


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
    "gguf": (Target(gguf_file, read_gguf_file),),
    "tokenizers": (
        Target(fast_tokenizer, read_tokenizer),
        Target(sentencepiece, read_tokenizer),
    ),
    "data": (
        Target(text_files, read_text_files),
        Target(tfds_folder, read_tfds_folder),
        *(
            Target(functools.partial(table, kind, layout), read_table)
            for kind in STRINGS
            for layout in ("parquet", "stream", "file")
        ),
    ),
}
