"""Text from a model: `python -m fqs_jax.generate --checkpoint=W --stage=3 --prompt="Once"`.

Also a Python API: `generate(loaded, prompts, ...)`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.text import Text

from fqs_jax.inference.generation import check_sampling, generate, prompt_ids
from fqs_jax.inference.loaded import Loaded
from fqs_jax.inference.stream import Stream, plain_console, thought_text
from fqs_jax.runs import loading
from fqs_jax.runtime import cli
from fqs_jax.runtime.errors import UserError

_MOST_LENGTHS = 100  # of what the model was made for


def define_flags() -> None:
    """The command line; not at import, since programs import this file for its API."""
    flags.DEFINE_string("checkpoint", "", "Hugging Face folder or working directory.")
    flags.DEFINE_string("stage", None, "Stage of a working directory: number, name or init.")
    flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times.")
    flags.DEFINE_string("prompt_file", "", "UTF-8 text file, one prompt a line.")
    flags.DEFINE_integer("max_new_tokens", 64, "Longest continuation.")
    flags.DEFINE_float("temperature", 0.0, "0 = the likeliest token.")
    flags.DEFINE_float("top_p", 1.0, "Sample from this much of the probability.")
    flags.DEFINE_integer("seed", 0, "Of sampling, thoughts included.", 0, cli.MAX_SEED)
    flags.DEFINE_bool("think", True, "--nothink: leave the thoughts out.")
    flags.DEFINE_bool("show_thoughts", False, "Print each thought, dimmed, before its token.")
    cli.define_device_flags()


def main(_: Sequence[str]) -> None:
    cli.require(
        checkpoint=flags.FLAGS.checkpoint, prompt=flags.FLAGS.prompt or flags.FLAGS.prompt_file
    )
    # Before anything is loaded or printed.
    check_sampling(flags.FLAGS.max_new_tokens, flags.FLAGS.temperature, flags.FLAGS.top_p)
    prompts = list(flags.FLAGS.prompt) + _read_prompts(flags.FLAGS.prompt_file)
    loaded = loading.load(flags.FLAGS.checkpoint, flags.FLAGS.stage, mesh=cli.mesh_from_flags())
    length = _longest(loaded, prompts) + flags.FLAGS.max_new_tokens
    _refuse_endless(flags.FLAGS.max_new_tokens, loaded.model.max_seq_len)
    if length > loaded.model.max_seq_len:
        print(
            f"note: up to {length} tokens, the model was made for {loaded.model.max_seq_len}; "
            "beyond that text falls apart",
            file=sys.stderr,
        )
    console = plain_console()
    show = flags.FLAGS.show_thoughts
    if show and loaded.thought is None:
        console.print(Text(f"{loaded.label} does not think: no thoughts to show", style="dim"))
    stream = Stream(loaded, console, prompts[0], show) if len(prompts) == 1 else None
    results = generate(
        loaded,
        prompts,
        flags.FLAGS.max_new_tokens,
        temperature=flags.FLAGS.temperature,
        top_p=flags.FLAGS.top_p,
        seed=flags.FLAGS.seed,
        think=flags.FLAGS.think,
        on_step=stream.step if stream else None,
    )
    if stream:
        console.print()
        return
    for prompt, result in zip(prompts, results, strict=True):
        console.print(Text(prompt, style="bold") + Text(result.text))
        if show:
            for drawn, weight in zip(result.thoughts, result.weights, strict=True):
                console.print(thought_text(loaded, drawn, weight))


def _longest(loaded: Loaded, prompts: Sequence[str]) -> int:
    """Tokens of the longest prompt, which must be as many as the model can read."""
    lengths = [len(prompt_ids(loaded, prompt)) for prompt in prompts]
    longest, room = max(lengths), loaded.model.max_seq_len
    if longest > room:
        raise UserError(
            f"prompt {lengths.index(longest) + 1} of {len(prompts)} has {longest} tokens, the model "
            f"was made for {room}; shorten it"
        )
    return longest


def _refuse_endless(max_new_tokens: int, max_seq_len: int) -> None:
    """Refuse lengths that are surely a slip: memory for all of it is allocated before the first token."""
    if max_new_tokens > _MOST_LENGTHS * max_seq_len:
        raise UserError(
            f"--max_new_tokens={max_new_tokens} is more than {_MOST_LENGTHS} times the {max_seq_len} "
            "tokens that the model was made for; set it lower"
        )


def _read_prompts(path: str) -> list[str]:
    if not path:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read prompts from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; convert it") from error
    if "\0" in text:  # which UTF-16 without its mark is full of
        raise UserError(f"{path} has NUL characters, so it is no UTF-8 text; convert it")
    lines = text.split("\n")
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path} has no prompt; write one a line")
    return prompts


if __name__ == "__main__":
    cli.run(main, define_flags)
