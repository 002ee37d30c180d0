"""Text from a model: `python -m fqs_jax.generate --checkpoint=W --stage=3 --prompt="Once"`.

--show_thoughts prints the thought behind each token and its weight, ‹8 =|0.41›, in front of the next token.
The built-in example continues a question such as "5 +1 +3 = " as its text does, with the work.

The same in Python: `fqs_jax.inference.generation.generate(loaded, prompts, ...)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from fqs_jax.runtime import cli, seeds, typed_flags
from fqs_jax.runtime.errors import UserError, printable, visible
from fqs_jax.runtime.stderr import say


def define_flags() -> None:
    """The command line."""
    typed_flags.define_path("checkpoint", "", "Hugging Face folder or working directory.")
    flags.DEFINE_string(
        "stage", None, "Stage of a working directory: number, name (3@best: its best step) or init."
    )
    flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times.")
    typed_flags.define_path("prompt_file", "", "UTF-8 text file, one prompt a line.")
    flags.DEFINE_bool(
        "chat",
        False,
        "Prompts are messages to answer, written by the model's chat template; --prompt_file may be a "
        ".jsonl file of conversations.",
    )
    flags.DEFINE_string("system", "", "With --chat: the system message in front of each prompt.")
    flags.DEFINE_integer("max_new_tokens", 64, "Longest continuation.", 1)
    typed_flags.define_number("temperature", 0.0, "0 = the likeliest token.")
    typed_flags.define_number("top_p", 1.0, "Sample from this much of the probability.")
    flags.DEFINE_integer("seed", 0, "Of sampling, thoughts included.", 0, seeds.MAX_SEED)
    flags.DEFINE_bool("think", True, "--nothink: leave the thoughts out.")
    flags.DEFINE_bool("show_thoughts", False, "Print each thought, dimmed, before its token.")
    cli.define_device_flags()


def main(_: Sequence[str]) -> None:
    # Imported here, because --help should not wait for them.
    from rich.text import Text

    from fqs_jax.data import messages
    from fqs_jax.inference import chat
    from fqs_jax.inference import prompts as prompts_lib
    from fqs_jax.inference.generation import check_sampling, generate
    from fqs_jax.inference.stream import Stream, plain_console, thought_text
    from fqs_jax.runs import loading

    cli.require(
        checkpoint=flags.FLAGS.checkpoint, prompt=flags.FLAGS.prompt or flags.FLAGS.prompt_file
    )
    # Before anything is loaded or printed.
    check_sampling(flags.FLAGS.max_new_tokens, flags.FLAGS.temperature, flags.FLAGS.top_p)
    file, system = flags.FLAGS.prompt_file, flags.FLAGS.system
    has_conversations = flags.FLAGS.chat and file.lower().endswith(".jsonl")
    _refuse_mistakes(has_conversations)
    if flags.FLAGS.top_p != 1 and not flags.FLAGS.temperature:
        say("note: --top_p is for sampling, and --temperature=0 takes the likeliest token")
    prompts = shown = list(flags.FLAGS.prompt)
    if file and not has_conversations:
        prompts = shown = prompts + prompts_lib.read(file)
    conversations = [messages.of_user(prompt, system) for prompt in prompts]
    if has_conversations:
        conversations += prompts_lib.read_conversations(file)
    loaded = loading.load(flags.FLAGS.checkpoint, flags.FLAGS.stage, mesh=cli.mesh_from_flags())
    if flags.FLAGS.chat:
        loaded, template = chat.for_chat(loaded)
        prompts = prompts_lib.render(template, conversations)
        shown = [f"{messages.last_text(conversation)}\n" for conversation in conversations]
    loaded.tokenizer.note_unknown(prompts)
    length = prompts_lib.longest(loaded, prompts) + flags.FLAGS.max_new_tokens
    prompts_lib.refuse_endless(flags.FLAGS.max_new_tokens, loaded.model.max_seq_len)
    if length > loaded.model.max_seq_len:
        say(
            f"note: up to {length} tokens, the model was made for {loaded.model.max_seq_len}; "
            "beyond that text falls apart"
        )
    console = plain_console()
    show = flags.FLAGS.show_thoughts
    if show and loaded.thought is None:
        console.print(
            Text(f"{printable(loaded.label)} does not think: no thoughts to show", style="dim")
        )
    stream = Stream(loaded, console, prompts[0], show, shown[0]) if len(prompts) == 1 else None
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
    for prompt, result in zip(shown, results, strict=True):
        console.print(Text(visible(prompt), style="bold") + Text(visible(result.text)))
        if show:
            for drawn, weight in zip(result.thoughts, result.weights, strict=True):
                console.print(thought_text(loaded, drawn, weight))


def _refuse_mistakes(has_conversations: bool) -> None:
    """Refuse flags that do not go together, before anything is loaded."""
    if flags.FLAGS.show_thoughts and not flags.FLAGS.think:
        raise UserError("--nothink leaves no thoughts for --show_thoughts; leave one of them out")
    if flags.FLAGS.system and not flags.FLAGS.chat:
        raise UserError("--system is for --chat; add that or leave it out")
    if flags.FLAGS.system and has_conversations:
        raise UserError(
            "--system is for prompts, and the conversations of a .jsonl file have their own; put it "
            "there and leave --system out"
        )


if __name__ == "__main__":
    cli.run(main, define_flags)
