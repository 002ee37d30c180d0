"""The flags of `python -m fqs_jax.evaluate`, by the command that they belong to.

They are apart from the commands, which take seconds to import, so that --help answers at once.
"""

from __future__ import annotations

from collections.abc import Callable

from absl import flags

from fqs_jax.runtime import cli, seeds, typed_flags

flags.disclaim_key_flags()  # they belong to the program, for --help

NAMES = ("csqa", "piqa", "siqa", "gsm8k", "choices")
FIT_ITEMS = 500  # of --fit_file
# Flags that several commands use, but not all of them.
SHARED = {
    "watch": ("text",),
    "task": ("workdir", "checkpoint", "stage", "text", "all_stages", "thought_seeds"),
    "all_stages": ("workdir", "checkpoint", "text", "thought_seeds"),
    "": ("checkpoint", "stage", "text", "thought_seeds"),
}


def define() -> dict[str, set[str]]:
    """Define the flags of all commands.

    Returns:
      The flags that each command uses, besides those that all use. A command is named after the flag that
      chooses it, and the loss of one model, which no flag chooses, is "".
    """
    _define_common_flags()
    own: dict[str, Callable[[], None]] = {
        "watch": _define_watch_flags,
        "task": _define_task_flags,
        "all_stages": _define_all_stages_flags,
        "": lambda: None,
    }
    used = {}
    for command, define_own in own.items():
        before = set(flags.FLAGS)
        define_own()
        used[command] = {*SHARED[command], *(set(flags.FLAGS) - before)}
    return used


def _define_common_flags() -> None:
    typed_flags.define_path("checkpoint", "", "Hugging Face folder or working directory.")
    flags.DEFINE_string(
        "stage", None, "Stage of a working directory: number, name (3@best: its best step) or init."
    )
    flags.DEFINE_string(
        "text", "", "Held-out text (docs/data.md). With --task: what was trained on."
    )
    flags.DEFINE_integer(
        "seq_len",
        None,
        "Tokens of a window; default what the model was made for, at most 1024.",
        2,
        2**20,
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Rows in a batch; default 8 windows, 32 rows of a task, 256 problems.",
        1,
        2**16,
    )
    flags.DEFINE_bool("download", False, "Fetch a tfds: or hub: dataset that is not here.")
    flags.DEFINE_integer("seed", 0, "Seed of sampled thoughts.", 0, seeds.MAX_SEED)
    flags.DEFINE_bool("json", False, "Print JSON, one line a model.")
    cli.define_device_flags()
    typed_flags.define_path("workdir", "", "Working directory, with --all_stages.")
    flags.DEFINE_integer(
        "thought_seeds",
        None,
        "Sampled thoughts averaged; default 4 for answers, 1 for text.",
        1,
        4096,
    )


def _define_watch_flags() -> None:
    flags.DEFINE_bool("watch", False, "Check whether --student fell behind --teacher.")
    typed_flags.define_path("teacher", "", "Thinking model: WORKDIR:STAGE or a folder.")
    typed_flags.define_path("student", "", "Model without thoughts: WORKDIR:STAGE or a folder.")
    flags.DEFINE_string(
        "reference", "", "Text of training time; default: the text that the student was trained on."
    )
    flags.DEFINE_integer("documents", 200, "Documents of each text at most, evenly spread.", 8)
    typed_flags.define_number("tolerance", 0.01, "Accepted drift of the gap, nats a token.", 0.0)
    typed_flags.define_number(
        "loss_tolerance", 0.5, "Accepted rise of the student's loss, nats a token.", 0.0
    )


def _define_task_flags() -> None:
    flags.DEFINE_enum("task", None, NAMES, "Benchmark.")
    flags.DEFINE_string(
        "task_file", "", "Items of the benchmark: a file, tfds:NAME:SPLIT, hub:OWNER/NAME:SPLIT."
    )
    flags.DEFINE_enum(
        "scoring",
        "letters",
        ("letters", "text"),
        "Score options by their letters, as published, or by their texts, as lm-evaluation-harness.",
    )
    typed_flags.define_path("labels_file", "", "Answers of PIQA and SIQA; default NAME-labels.lst.")
    flags.DEFINE_integer("limit", None, "Only the first so many items.", 1)
    flags.DEFINE_bool("greedy", False, "Use the likeliest thought instead of sampled ones.")
    flags.DEFINE_bool("chat", False, "Put questions as messages, by the model's chat template.")
    flags.DEFINE_string(
        "fit_file",
        "",
        f"Other items; the first {FIT_ITEMS} fit temperatures. Without it, temperatures of each half of the "
        "items are fitted on the other half.",
    )
    typed_flags.define_path("fit_labels_file", "", "Answers of --fit_file.")
    flags.DEFINE_bool("siqa_space", False, "SIQA: put a space between context and question.")
    flags.DEFINE_integer("votes", 0, "GSM8K: number of chains of thought that vote.", 0, 4096)
    typed_flags.define_number("temperature", 0.8, "Temperature of chains of thought.", 0.0)
    typed_flags.define_number("top_p", 0.95, "Nucleus of chains of thought.", 0.0, 1.0)
    flags.DEFINE_integer("max_new_tokens", 1000, "Tokens of a chain of thought at most.", 1, 2**20)
    flags.DEFINE_string(
        "cot_prompt",
        "",
        "Prompt of chains of thought, with {question} in it; default docs/metrics.md.",
    )
    typed_flags.define_path(
        "chains_file",
        "",
        "File to append the chains of thought to, as JSON lines.",
        local=True,
    )


def _define_all_stages_flags() -> None:
    flags.DEFINE_bool("all_stages", False, "Compare all stages of --workdir.")
