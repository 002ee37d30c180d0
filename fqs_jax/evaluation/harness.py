"""The model `fqs_jax` of the lm-evaluation-harness: a checkpoint that answers its requests."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from fqs_jax.inference import generation, readings
from fqs_jax.inference.generation import Emitted
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import loading
from fqs_jax.runtime import cli, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.progress import Progress

try:
    import lm_eval.models  # noqa: F401  the harness finds its own models only if none is registered
    from lm_eval import utils as harness
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    missing = f"{error.name} is not installed; pip install 'fqs_jax[eval]'"
    raise ImportError(missing, name=error.name) from error

_log = logging.getLogger(__name__)
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens")


@register_model("fqs_jax")
class FqsJax(LM):
    """A checkpoint with the interface of the harness. Only `checkpoint` is required in `--model_args`.

    Args:
      checkpoint: Hugging Face folder or working directory.
      stage: number or name of a stage of a working directory, or init.
      think: False turns the thoughts off.
      thought_temperature: of sampling thoughts; 0 takes the likeliest tokens; None = as configured.
      seed: of sampling, thoughts included.
      batch_size: texts in a batch.
      max_gen_toks: length limit of generated texts for tasks without one.
      fsdp, tensor: devices that the model is sharded over.
    """

    def __init__(
        self,
        checkpoint: str,
        stage: str | int | None = None,
        think: bool = True,
        thought_temperature: float | None = None,
        seed: int = 0,
        batch_size: str | int | None = 8,
        max_gen_toks: int = 256,
        fsdp: int = 1,
        tensor: int = 1,
        max_batch_size: int | None = None,  # the harness gives these two to every model
        device: str | None = None,
    ):
        super().__init__()
        if not 0 <= seed <= cli.MAX_SEED:
            raise UserError(f"seed must be 0 to {cli.MAX_SEED}, not {seed}")
        name = None if stage is None else str(stage)
        loaded = loading.load(str(checkpoint), name, mesh=sharding.local_mesh(fsdp, tensor))
        if not think:
            loaded = dataclasses.replace(loaded, thought=None)
        elif loaded.thought is not None and thought_temperature is not None:
            temperature = float(thought_temperature)
            generation.check_sampling(1, temperature, top_p=1.0)
            loaded = loaded.with_thought(temperature=temperature)
        self.loaded: Loaded = loaded
        self._seed, self._max_gen_toks = seed, max_gen_toks
        # `auto` asks for the largest batch that fits, which is not searched for here.
        requested = "auto" if batch_size is None else str(batch_size)
        self._batch_size = 8 if requested.startswith("auto") else _count(requested)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and True for the greedy one."""
        tokenizer = self.loaded.tokenizer
        return self._score([readings.encode(tokenizer, *r.args) for r in requests])

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each text, every token once, in windows that the model was made for."""
        tokenizer = self.loaded.tokenizer
        windows: list[readings.Request] = []
        owners = []
        for i, request in enumerate(requests):
            cut = harness.get_rolling_token_windows(
                tokenizer.encode(request.args[0]),
                readings.first_id(tokenizer),
                self.loaded.model.max_seq_len,
                1,
            )
            pairs = [readings.Request(*harness.make_disjoint_window(pair)) for pair in cut]
            windows += pairs
            owners += [i] * len(pairs)
        log_probs = [log_prob for log_prob, _ in self._score(windows)]
        return np.bincount(owners, log_probs, len(requests)).tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of the task's stop texts, which is left out."""
        results = [""] * len(requests)
        groups: dict[str, list[int]] = {}  # requests with equal settings can share a batch
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        for members in groups.values():
            members.sort(key=lambda i: len(requests[i].args[0]))
            settings = requests[members[0]].args[1]
            for start in range(0, len(members), self._batch_size):
                chosen = members[start : start + self._batch_size]
                texts = self._generate([requests[i].args[0] for i in chosen], settings)
                for i, text in zip(chosen, texts, strict=True):
                    results[i] = text
        return results

    def _score(self, requests: Sequence[readings.Request]) -> list[tuple[float, bool]]:
        with Progress(f"{self.loaded.label}: continuations", 0, 0) as bar:
            scores, cropped = readings.score(
                self.loaded,
                requests,
                self._batch_size,
                self._seed,
                bar.advance_to,
            )
        if cropped:
            _log.warning(
                "%d of %d texts were longer than %d tokens and lost their beginning",
                cropped,
                len(requests),
                self.loaded.model.max_seq_len,
            )
        return [(score.log_prob, score.greedy) for score in scores]

    def _generate(self, contexts: list[str], settings: dict[str, Any]) -> list[str]:
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else until
        longest = next(
            (int(settings[name]) for name in _LENGTH_NAMES if name in settings), self._max_gen_toks
        )
        temperature = float(settings.get("temperature", 0.0))
        if not settings.get("do_sample", temperature > 0):
            temperature = 0.0
        prompts = [self._fitted(context, longest) for context in contexts]
        texts = _Until(self.loaded, until, len(prompts))
        try:
            generation.generate(
                self.loaded,
                prompts,
                longest,
                temperature=temperature,
                top_p=float(settings.get("top_p", 1.0)),
                seed=self._seed,
                on_step=texts.step,
            )
        except _AllStopped:
            pass
        return texts.texts

    def _fitted(self, context: str, new_tokens: int) -> str:
        """The end of a context, short enough for the new tokens to fit behind it."""
        tokenizer, longest = self.loaded.tokenizer, self.loaded.model.max_seq_len
        ids = generation.prompt_ids(self.loaded, context)
        room = longest - new_tokens
        if room < 1:
            raise UserError(
                f"{new_tokens} new tokens leave no room for a context in {longest}; give "
                "--gen_kwargs max_gen_toks=N"
            )
        if len(ids) <= room:
            return context
        _log.warning("a context of %d tokens lost its beginning to fit in %d", len(ids), room)
        keep = room - len(tokenizer.opening)
        while True:  # cut off from its beginning, a text may take more tokens than before
            text = tokenizer.decode(ids[len(ids) - keep :])
            excess = len(generation.prompt_ids(self.loaded, text)) - room
            if excess <= 0:
                return text
            keep = max(0, keep - excess)


def _count(batch_size: str) -> int:
    if not batch_size.isdigit() or int(batch_size) < 1:
        raise UserError(f"--batch_size is a number of texts, 1 or more, or auto, not {batch_size}")
    return int(batch_size)


class _AllStopped(Exception):
    """Raised to end a generation in which every text has stopped."""


class _Until:
    """Growing texts, each cut before the first of the stop texts."""

    def __init__(self, loaded: Loaded, until: Sequence[str], rows: int):
        self._tokenizer, self._until = loaded.tokenizer, until
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self._stopped = [False] * rows
        self.texts = [""] * rows

    def step(self, emitted: Emitted) -> None:
        for i, token in enumerate(emitted.token_B.tolist()):
            if self._stopped[i]:
                continue
            if token < 0:
                self._stopped[i] = True
                continue
            self._ids[i].append(token)
            text = self._tokenizer.decode(self._ids[i])
            ends = [text.index(stop) for stop in self._until if stop and stop in text]
            self._stopped[i] = bool(ends)
            self.texts[i] = text[: min(ends)] if ends else text
        if all(self._stopped):
            raise _AllStopped
