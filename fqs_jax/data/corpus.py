"""From a config's `data` section to rows of tokens and to a tokenizer."""

from __future__ import annotations

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
_TOKENIZER_DOCUMENTS = 100_000  # that a tokenizer is trained on at most, spread over the text
_MAX_BLANK = 1000  # blank documents in a row that a crop steps over


def built_in_task(data: ml_collections.ConfigDict, seed: int) -> Task | None:
    """The built-in task that data.source names, as the config sets it; None for text.

    Raises:
      UserError: there is no such source, or the task cannot be as it is set.
    """
    if data.source == "text":
        return None
    if data.source not in TASKS:
        raise UserError(
            f"data.source is {data.source!r}; choose from {', '.join(('text', *TASKS))}"
        )
    fields = data[data.source].to_dict()
    for name, value in fields.items():
        fields[name] = tuple(value) if isinstance(value, list) else value  # as JSON has tuples
    return TASKS[data.source](seed=seed, **fields)


def sources(data: ml_collections.ConfigDict, seed: int) -> list[tuple[Source, int]]:
    """What to train on: documents, each source with its weight.

    Raises:
      UserError: no text is configured, or it cannot be read.
    """
    if (task := built_in_task(data, seed)) is not None:
        return [(Documents(task.documents(data.num_documents)), 1)]
    if not data.text:
        raise UserError("no text to train on: give --text=FILE (docs/data.md says what it can be)")
    return open_sources(data.text, options(data))


def options(data: ml_collections.ConfigDict) -> options_lib.Options:
    """How the config says to open sources."""
    folder = Path(data.cache_dir).expanduser() if data.cache_dir else files.CACHE
    return options_lib.Options(data.text_key, folder, data.tfds_dir or None, data.download)


def vocab_size(task: Task) -> int:
    """Of a built-in task's tokenizer: its pieces, and those for unknown text, BOS and EOS."""
    return len(task.pieces) + 3


def train_tokenizer(data: ml_collections.ConfigDict, seed: int, folder: Path) -> Tokenizer:
    """A SentencePiece model for the corpus, for models trained from scratch."""
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
    """The endless stream of training rows.

    Args:
      seed: of the run. stream: sets the order apart from that of other streams (stages) of the run.

    Raises:
      UserError: the config or the text is not as it should be.
    """
    if data.rows not in ROWS:
        raise UserError(f"data.rows is {data.rows!r}; choose from {', '.join(ROWS)}")
    parts = sources(data, seed)
    rows = [(_rows(data, source, tokenizer), weight) for source, weight in parts]
    order_seed = int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])
    read, epoch_size = order.mixed(rows, order_seed)
    made_from = [(fingerprint(source), weight) for source, weight in parts]
    return order.Dataset(
        read,
        epoch_size,
        batch_size,
        data.seq_len,
        tokenizer.pad_id,
        identity=repr((data.rows, made_from)),
        workers=data.workers,
    )


def extra_keys(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """What the batches of a config have besides tokens and mask."""
    packed = data.rows == "pack" and not data.attend_across_documents
    return ("segment",) if packed else ()


def _rows(data: ml_collections.ConfigDict, source: Source, tokenizer: Tokenizer) -> order.Rows:
    if data.rows == "pack":
        stream = token_store.tokenize(source, tokenizer, options(data).cache)
        return order.packed_rows(stream, data.seq_len, data.attend_across_documents)
    bos_id = next(iter(tokenizer.opening), None)
    return order.cropped_rows(len(source), _encoded(source, tokenizer), data.seq_len, bos_id)


def _encoded(source: Source, tokenizer: Tokenizer) -> Callable[[int], list[int]]:
    """Document -> its tokens. In place of a blank one, which is rare, the next that is not."""

    def tokens_of(index: int) -> list[int]:
        for step in range(_MAX_BLANK):
            if (text := source[(index + step) % len(source)]).strip():
                return tokenizer.encode(text)
        raise UserError(f"{_MAX_BLANK} documents from number {index} on are blank; leave them out")

    return tokens_of


def _sample(texts: list[Source]) -> Iterator[str]:
    """All documents, or as many as are enough, spread evenly."""
    total = sum(map(len, texts))
    step = max(1, total / _TOKENIZER_DOCUMENTS)
    for source in texts:
        for i in range(int(np.ceil(len(source) / step))):
            yield source[int(i * step)]
