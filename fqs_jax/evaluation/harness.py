"""The model `fqs_jax` of the lm-evaluation-harness: a checkpoint that answers its requests."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fqs_jax.data import chat
from fqs_jax.data.chat import ChatTemplate, Refused
from fqs_jax.evaluation import harness_options
from fqs_jax.evaluation.stop_texts import AllStopped, StopTexts
from fqs_jax.inference import continuations, generation
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import loading
from fqs_jax.runtime import accelerators, paths, seeds, sharding
from fqs_jax.runtime.errors import UserError, printable
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
        self._seed = harness_options.whole_number("seed", seed, 0, seeds.MAX_SEED)
        self._max_gen_toks = harness_options.whole_number("max_gen_toks", max_gen_toks, 1, 2**31)
        self._batch_size = harness_options.texts_at_once(batch_size)
        mesh = sharding.local_mesh(
            harness_options.whole_number("fsdp", fsdp, 1, 2**16),
            harness_options.whole_number("tensor", tensor, 1, 2**16),
        )
        accelerators.note_unused()
        thinks = harness_options.switch("think", think)
        temperature = None
        if thought_temperature is not None:
            temperature = harness_options.number(
                "thought_temperature", thought_temperature, 0, math.inf
            )
            generation.check_sampling(1, temperature, top_p=1.0)
        name = None if stage is None else str(stage)
        loaded = loading.load(str(paths.expand(str(checkpoint))), name, mesh=mesh)
        if not thinks:
            loaded = dataclasses.replace(loaded, thought=None)
        elif temperature is not None:
            loaded = loaded.with_thought(temperature=temperature)
        self.loaded: Loaded = loaded
        self._template: ChatTemplate | None = None  # of chats, once it is asked for
        self._unused: set[str] = set()  # generation settings that a warning has named

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> FqsJax:
        """The model of `--model_args`, written as name=value,name=value.

        Raises:
          UserError: a name or a value is not known.
        """
        given = harness.simple_parse_args_string(arg_string)
        return cls.create_from_arg_obj(given, additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> FqsJax:
        """The same from arguments by name."""
        known = list(inspect.signature(cls).parameters)
        return cls(**harness_options.arguments(arg_dict, additional_config or {}, known))

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness keeps texts; it differs for other templates and tokens."""
        return self._chosen_template().fingerprint()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that chats are written with from now on; None, and no change, for False.

        Args:
          chat_template: True = the main one of the model's folder; or the name of one.

        Raises:
          UserError: the folder has none.
        """
        if not chat_template:
            return None
        name = chat_template if isinstance(chat_template, str) else None
        self._template = chat.choose(self.loaded.source, self.loaded.tokenizer, name)
        return self._template.text

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a chat; see `ChatTemplate.render`.

        A template that refuses system messages gets the chat without them, and a warning says so; the
        harness does the same.
        """
        template = self._chosen_template()
        try:
            return template.render(chat_history, add_generation_prompt)
        except Refused as error:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            text = template.render(rest, add_generation_prompt)
            _log.warning(
                "the chat template refuses system messages; the chat is written without them (%s)",
                error,
            )
            return text

    def _chosen_template(self) -> ChatTemplate:
        if self._template is None:
            self.chat_template(True)
        assert self._template is not None
        return self._template

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and True for the greedy one."""
        tokenizer = self.loaded.tokenizer
        return self._score([continuations.encode(tokenizer, *r.args) for r in requests])

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each text, every token once, in windows that the model was made for."""
        tokenizer = self.loaded.tokenizer
        windows: list[continuations.Request] = []
        owners = []
        for i, request in enumerate(requests):
            cut = harness.get_rolling_token_windows(
                tokenizer.encode(request.args[0]),
                continuations.first_id(tokenizer),
                self.loaded.model.max_seq_len,
                1,
            )
            pairs = [continuations.Request(*harness.make_disjoint_window(pair)) for pair in cut]
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
                texts = self._generate([requests[i].args[0] for i in chosen], settings, start)
                for i, text in zip(chosen, texts, strict=True):
                    results[i] = text
        return results

    def _score(self, requests: Sequence[continuations.Request]) -> list[tuple[float, bool]]:
        with Progress(f"{self.loaded.label}: continuations", 0, 0) as bar:
            scores, cropped = continuations.score(
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

    def _generate(self, contexts: list[str], settings: dict[str, Any], first: int) -> list[str]:
        """Continue contexts, the first of which has this number among those with equal settings."""
        wanted = harness_options.sampling(settings, self._max_gen_toks)
        if unused := set(harness_options.unused(settings)) - self._unused:
            self._unused |= unused
            names = printable(", ".join(sorted(unused)), 200)
            _log.warning("generation settings that this model does not have: %s", names)
        prompts = [self._fitted(context, wanted.max_new_tokens) for context in contexts]
        texts = StopTexts(self.loaded.tokenizer, wanted.until, len(prompts))
        with contextlib.suppress(AllStopped):
            generation.generate(
                self.loaded,
                prompts,
                wanted.max_new_tokens,
                temperature=wanted.temperature,
                top_p=wanted.top_p,
                seed=self._seed,
                first_row=first,
                on_step=texts.step,
            )
        return texts.texts

    def _fitted(self, context: str, new_tokens: int) -> list[int]:
        """The last token ids of a context, few enough for the new tokens to fit behind them.

        As in the harness's own models, the beginning is cut off, the BOS token too.
        """
        tokenizer, longest = self.loaded.tokenizer, self.loaded.model.max_seq_len
        ids = tokenizer.with_opening(context) or [continuations.first_id(tokenizer)]
        room = longest - new_tokens
        if room < 1:
            raise UserError(
                f"{new_tokens} new tokens leave no room for a context in {longest}; give "
                "--gen_kwargs max_gen_toks=N"
            )
        if len(ids) > room:
            _log.warning("a context of %d tokens lost its beginning to fit in %d", len(ids), room)
        return ids[-room:]
