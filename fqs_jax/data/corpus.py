"""The rows of tokens and the tokenizer that a config's `data` section describes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_collections
import numpy as np

from fqs_jax.data import chat, long_texts
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.conversations import Conversations
from fqs_jax.data.marked_tokens import Answers, MarkedSource
from fqs_jax.data.problems import answer_tokens
from fqs_jax.data.problems.chain import Chain
from fqs_jax.data.problems.clock import Clock
from fqs_jax.data.problems.multiplication import Multiplication
from fqs_jax.data.problems.parity import Parity
from fqs_jax.data.problems.stories import Stories
from fqs_jax.data.problems.task import Task
from fqs_jax.data.problems.word_problems import WordProblems
from fqs_jax.data.rows import order, token_store
from fqs_jax.data.sources import options as options_lib
from fqs_jax.data.sources.specification import Documents, Source, fingerprint, open_sources
from fqs_jax.data.sources.text_files import is_blank
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.data.tokenizer_training import train_sentencepiece
from fqs_jax.runtime import processes
from fqs_jax.runtime.errors import UserError

TASKS: dict[str, type[Task]] = {
    "clock": Clock,
    "chain": Chain,
    "parity": Parity,
    "multiplication": Multiplication,
    "word_problems": WordProblems,
    "stories": Stories,
}
DOWNLOAD_FLAG = "--config.data.download=true"  # of training
ROWS = ("pack", "crop")
LEARN = ("all", "answers")  # of a built-in task
_TOKENIZER_DOCUMENTS = 100_000  # a tokenizer is trained on at most this many, spread over the text
_MAX_DOCUMENTS = 100_000_000  # of a built-in task
_MAX_SEQ_LEN = 1 << 24
_MAX_WORKERS = 1024
_MAX_BLANK = 1000  # consecutive blank documents that a crop skips
_HELD_OUT = 2**32 - 1  # the stream of held-out rows, which no stage has: all measure the same rows


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


def sources(
    data: ml_collections.ConfigDict,
    seed: int,
    folder: Path | None = None,
    split: str = "train",
    download_flag: str = DOWNLOAD_FLAG,
) -> list[tuple[Source, int]]:
    """The sources of the training documents, each with its weight.

    Args:
      folder: of the tokenizer and the chat template, which conversations need.
      split: of a built-in task, whose problems the documents are made of.
      download_flag: see `options`.

    Raises:
      UserError: no text is configured, or it cannot be read; or there is no chat template.
    """
    if (learn := _learn(data)) not in LEARN:
        raise UserError(f"data.learn is {learn!r}; choose from {', '.join(LEARN)}")
    if learn == "answers" and data.source == "text":
        raise UserError("data.learn=answers is for built-in tasks; data.source is 'text'")
    if data.messages_key:
        return _conversations(data, folder, download_flag)
    if (task := built_in_task(data, seed)) is not None:
        if not 1 <= data.num_documents <= _MAX_DOCUMENTS:
            raise UserError(
                f"data.num_documents is {data.num_documents}; set 1 to {_MAX_DOCUMENTS}, which are "
                "held in memory"
            )
        documents = Documents(task.documents(data.num_documents, split))
        return [(documents if learn == "all" else Answers(documents, task.equals), 1)]
    if not data.text:
        raise UserError("no text to train on: give --text=FILE (docs/data.md lists the kinds)")
    return open_sources(data.text, options(data, download_flag))


def _conversations(
    data: ml_collections.ConfigDict, folder: Path | None, download_flag: str
) -> list[tuple[Source, int]]:
    if data.source != "text" or not data.text:
        raise UserError(
            "data.messages_key is for files of conversations; give --text=FILE.jsonl, or leave it out"
        )
    if folder is None:
        raise UserError(
            "data.messages_key needs a model with a chat template; give --init_from=HF_DIR"
        )
    template = chat.choose(folder, tokenizer_lib.load(folder))
    found = open_sources(data.text, options(data, download_flag))
    return [(Conversations(source, template), weight) for source, weight in found]


def options(
    data: ml_collections.ConfigDict, download_flag: str = DOWNLOAD_FLAG
) -> options_lib.Options:
    """The config's settings for opening sources.

    Args:
      download_flag: the flag of this program that allows downloads, for error messages.
    """
    key = data.messages_key or data.text_key
    is_chat = bool(data.messages_key)
    return options_lib.of(key, data.cache_dir, data.tfds_dir, data.download, download_flag, is_chat)


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
    data: ml_collections.ConfigDict,
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    stream: int,
    folder: Path | None = None,
    split: str = "train",
    questions: bool = False,
) -> order.Dataset:
    """The endless stream of a stage's training rows.

    Args:
      seed: seed of the run.
      stream: number of the stream (stage); each stream of a run has its own order.
      folder, split: as for `sources`.
      questions: True if what is learned is the token behind each document, the answer to its question.

    Raises:
      UserError: a setting is out of range, the text cannot be read, or the tokenizer has no token of its
        own for each answer of a built-in task. With `questions`, also if an answer is more than the next
        token; and, when its row is read, if a document is longer than a row.
    """
    if data.rows not in ROWS:
        raise UserError(f"data.rows is {data.rows!r}; choose from {', '.join(ROWS)}")
    if not 2 <= data.seq_len <= _MAX_SEQ_LEN:
        raise UserError(f"data.seq_len is {data.seq_len}; set 2 to {_MAX_SEQ_LEN}")
    if not 0 <= data.workers <= _MAX_WORKERS:
        raise UserError(f"data.workers is {data.workers}; set 0 (threads) to {_MAX_WORKERS}")
    if (task := built_in_task(data, seed)) is not None:  # found out now, not when it is evaluated
        prompts = [task.problem(length, 0).prompt for length in task.lengths]
        _, answers = answer_tokens.encode(tokenizer, prompts, task.answers)
        several = any(" " in task.problem(length, 0).answer for length in task.lengths)
        if questions and (answers.shared or several):
            raise UserError(
                f"an answer of {data.source} is more than one token behind the question in this tokenizer, "
                "and distill.positions=last learns the next token alone: set distill.positions to all"
            )
    parts = sources(data, seed, folder, split)
    rows = [(_rows(data, source, tokenizer, questions), weight) for source, weight in parts]
    order_seed = int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])
    made_from = [(fingerprint(source), weight) for source, weight in parts]
    return order.Dataset(
        order.mixed(rows, order_seed),
        batch_size,
        data.seq_len,
        tokenizer.pad_id,
        identity=repr((data.rows, made_from)),
        marked=_is_marked(data),
        workers=data.workers,
    )


def held_out(
    data: ml_collections.ConfigDict,
    text: str,
    count: int,
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    folder: Path | None = None,
) -> order.Dataset:
    """Rows like those of training, of text that is not trained on.

    Args:
      text: as data.text; "" for a built-in task, whose documents are then of its validation problems.
      count: number of documents of a built-in task.
      folder: as for `sources`.

    Raises:
      UserError: as in `check_held_out` and `dataset`.
    """
    check_held_out(data, text)
    other = data.copy_and_resolve_references()
    other.update(text=text, num_documents=count)
    return dataset(other, tokenizer, batch_size, seed, _HELD_OUT, folder, "validation")


def check_held_out(data: ml_collections.ConfigDict, text: str) -> None:
    """Check which text is held out.

    Raises:
      UserError: none is named, it is the training text, or the config trains on a built-in task and
        names one.
    """
    if data.source != "text":
        if text:
            raise UserError(
                f"held_out.text is for text, and data.source is {data.source!r}, whose validation problems "
                "are held out: leave it empty"
            )
    elif not text:
        raise UserError(
            "held_out.every needs text that is not trained on: give --config.held_out.text=FILE, of the "
            "kinds of --text"
        )
    elif text == data.text:
        raise UserError("held_out.text is the text that is trained on: name another")


def extra_keys(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The keys that the batches of a config have besides tokens and mask."""
    packed = data.rows == "pack" and not data.attend_across_documents
    keys = {"segment": packed, "target": _is_marked(data)}
    return tuple(key for key, present in keys.items() if present)


def _is_marked(data: ml_collections.ConfigDict) -> bool:
    """True if only a part of the documents is predicted."""
    return bool(data.messages_key) or _learn(data) == "answers"


def _learn(data: ml_collections.ConfigDict) -> str:
    """The setting data.learn, which records of earlier versions lack."""
    return data.get("learn", "all")


def _rows(
    data: ml_collections.ConfigDict, source: Source, tokenizer: Tokenizer, whole: bool
) -> Callable[[int], order.Stream]:
    """A function from a seed to the shuffled rows of a source."""
    if data.rows == "pack":
        cache = options(data).tokens
        tokens = token_store.tokenize(source, tokenizer, cache, processes.share())
        across = data.attend_across_documents
        return functools.partial(order.packed_rows, tokens, data.seq_len, across)
    has_bos = isinstance(source, MarkedSource)  # if the model wants it
    bos_id = None if has_bos else next(iter(tokenizer.opening), None)
    room = data.seq_len - (bos_id is not None)
    documents = _encoded(source, tokenizer, room if whole else None)
    return functools.partial(order.cropped_rows, len(source), documents, data.seq_len, bos_id)


def _encoded(
    source: Source, tokenizer: Tokenizer, longest: int | None
) -> Callable[[int], np.ndarray]:
    """A function from a document's number to its tokens; a blank document is replaced by the next.

    It refuses a document of more than `longest` tokens, if that is not None.
    """

    def tokens_of(index: int) -> np.ndarray:
        for step in range(_MAX_BLANK):
            number = (index + step) % len(source)
            if isinstance(source, MarkedSource):
                if len(tokens := source.tokens(number, tokenizer)):
                    return tokens
            elif not is_blank(text := source[number]):
                tokens = tokenizer.after_opening(long_texts.encode(tokenizer, text))
                if longest is not None and len(tokens) > longest:
                    raise UserError(
                        f"document {number} has {len(tokens)} tokens and a row {longest}: the end of this "
                        "question, where distill.positions=last learns, would be cut off; set data.seq_len "
                        "higher"
                    )
                return tokens
        raise UserError(f"{_MAX_BLANK} documents from number {index} on are blank; leave them out")

    return tokens_of


def _sample(texts: list[Source]) -> Iterator[str]:
    """The documents that a tokenizer is trained on: all, or a sample that is spread evenly."""
    total = sum(map(len, texts))
    step = max(1, total / _TOKENIZER_DOCUMENTS)
    for source in texts:
        for i in range(int(np.ceil(len(source) / step))):
            yield source[int(i * step)]
