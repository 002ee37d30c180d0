"""The rows of tokens and the tokenizer that a config's `data` section describes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_collections
import numpy as np

from fqs_jax.data.problems.chain import Chain
from fqs_jax.data.problems.clock import Clock
from fqs_jax.data.problems.multiplication import Multiplication
from fqs_jax.data.problems.parity import Parity
from fqs_jax.data.problems.task import Task
from fqs_jax.data.problems.word_problems import WordProblems
from fqs_jax.data.rows import order, token_store
from fqs_jax.data.sources import options as options_lib
from fqs_jax.data.sources.specification import Documents, Source, fingerprint, open_sources
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.data.tokenizer_training import train_sentencepiece
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import UserError

TASKS: dict[str, type[Task]] = {
    "clock": Clock,
    "chain": Chain,
    "parity": Parity,
    "multiplication": Multiplication,
    "word_problems": WordProblems,
}
ROWS = ("pack", "crop")
_TOKENIZER_DOCUMENTS = 100_000  # a tokenizer is trained on at most this many, spread over the text
_MAX_BLANK = 1000  # consecutive blank documents that a crop skips


def built_in_task(data: ml_collections.ConfigDict, seed: int) -> Task | None:
    """The built-in task that data.source names, with the config's fields; None for text.

    Raises:
      UserError: no such source exists, or a field of the task is out of range.
    """
    if data.source == "text":
        return None
    if data.source not in TASKS:
        raise UserError(
            f"data.source is {data.source!r}; choose from {', '.join(('text', *TASKS))}"
        )
    fields = data[data.source].to_dict()
    for name, value in fields.items():
        fields[name] = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
    return TASKS[data.source](seed=seed, **fields)


def sources(data: ml_collections.ConfigDict, seed: int) -> list[tuple[Source, int]]:
    """The sources of the training documents, each with its weight.

    Raises:
      UserError: no text is configured, or it cannot be read.
    """
    if (task := built_in_task(data, seed)) is not None:
        return [(Documents(task.documents(data.num_documents)), 1)]
    if not data.text:
        raise UserError("no text to train on: give --text=FILE (docs/data.md lists the kinds)")
    return open_sources(data.text, options(data))


def options(data: ml_collections.ConfigDict) -> options_lib.Options:
    """The config's settings for opening sources."""
    folder = Path(data.cache_dir).expanduser() if data.cache_dir else files.cache_folder()
    return options_lib.Options(data.text_key, folder, data.tfds_dir or None, data.download)


def vocab_size(task: Task) -> int:
    """The size of a built-in task's vocabulary: its pieces, and unknown, BOS and EOS."""
    return len(task.pieces) + 3


def train_tokenizer(data: ml_collections.ConfigDict, seed: int, folder: Path) -> Tokenizer:
    """Train a SentencePiece model on the corpus, for a model that is trained from scratch.

    Args:
      seed: seed of the run, which a built-in task's documents are drawn from.
      folder: gets tokenizer.model and tokenizer_config.json.

    Raises:
      UserError: no size is configured, or the text does not support it.
    """
    texts = [source for source, _ in sources(data, seed)]
    if (task := built_in_task(data, seed)) is not None:
        return train_sentencepiece(
            _sample(texts),
            folder,
            vocab_size(task),
            user_defined_symbols=task.pieces,
            byte_fallback=False,
        )
    if data.tokenizer_pieces < 1:
        raise UserError(
            "a model from scratch needs a tokenizer: set data.tokenizer_pieces, the size of its "
            "vocabulary, or give --init_from=HF_DIR"
        )
    lines = (line for text in _sample(texts) for line in text.splitlines() if line.strip())
    return train_sentencepiece(lines, folder, data.tokenizer_pieces)


def dataset(
    data: ml_collections.ConfigDict, tokenizer: Tokenizer, batch_size: int, seed: int, stream: int
) -> order.Dataset:
    """The endless stream of a stage's training rows.

    Args:
      seed: seed of the run.
      stream: number of the stream (stage); each stream of a run has its own order.

    Raises:
      UserError: a setting is out of range, or the text cannot be read.
    """
    if data.rows not in ROWS:
        raise UserError(f"data.rows is {data.rows!r}; choose from {', '.join(ROWS)}")
    parts = sources(data, seed)
    rows = [(_rows(data, source, tokenizer), weight) for source, weight in parts]
    order_seed = int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])
    made_from = [(fingerprint(source), weight) for source, weight in parts]
    return order.Dataset(
        order.mixed(rows, order_seed),
        batch_size,
        data.seq_len,
        tokenizer.pad_id,
        identity=repr((data.rows, made_from)),
        workers=data.workers,
    )


def extra_keys(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The keys that the batches of a config have besides tokens and mask."""
    packed = data.rows == "pack" and not data.attend_across_documents
    return ("segment",) if packed else ()


def _rows(
    data: ml_collections.ConfigDict, source: Source, tokenizer: Tokenizer
) -> Callable[[int], order.Stream]:
    """A function from a seed to the shuffled rows of a source."""
    if data.rows == "pack":
        tokens = token_store.tokenize(source, tokenizer, options(data).cache)
        across = data.attend_across_documents
        return functools.partial(order.packed_rows, tokens, data.seq_len, across)
    bos_id = next(iter(tokenizer.opening), None)
    documents = _encoded(source, tokenizer)
    return functools.partial(order.cropped_rows, len(source), documents, data.seq_len, bos_id)


def _encoded(source: Source, tokenizer: Tokenizer) -> Callable[[int], list[int]]:
    """A function from a document's number to its tokens; a blank document is replaced by the next."""

    def tokens_of(index: int) -> list[int]:
        for step in range(_MAX_BLANK):
            if (text := source[(index + step) % len(source)]).strip():
                return tokenizer.encode(text)
        raise UserError(f"{_MAX_BLANK} documents from number {index} on are blank; leave them out")

    return tokens_of


def _sample(texts: list[Source]) -> Iterator[str]:
    """The documents that a tokenizer is trained on: all, or a sample that is spread evenly."""
    total = sum(map(len, texts))
    step = max(1, total / _TOKENIZER_DOCUMENTS)
    for source in texts:
        for i in range(int(np.ceil(len(source) / step))):
            yield source[int(i * step)]
