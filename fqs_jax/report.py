"""Report: `python -m fqs_jax.report W` writes W/report.html, one page that needs no other file.

It shows training curves, accuracy against time, text coloured by the gain of the thoughts, and signs of
collapse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from fqs_jax.runtime import cli, files, inputs, outputs, paths, seeds, typed_flags
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.stderr import say

_WORKDIR = typed_flags.define_path(
    "workdir", "", "Working directory; also accepted without the flag."
)
_OUT = typed_flags.define_path(
    "out", "", "File to write; default report.html in the working directory."
)
_STAGE = flags.DEFINE_string(
    "stage", None, "Thinking stage to show (1@best: its best step); default the last one."
)
_TEXT = flags.DEFINE_string(
    "text", "", "Held-out text; default held-out problems, or training text."
)
_TOKENS = flags.DEFINE_integer("tokens", 600, "Tokens of text to show, approximately.", 1, 10**6)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 512, "Tokens of one document at most; the rest is cut.", 2
)
_SAMPLES = flags.DEFINE_integer("samples", 4, "Thoughts sampled before every token.", 1, 1024)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampled thoughts.", 0, seeds.MAX_SEED)
cli.define_device_flags()


def main(argv: Sequence[str]) -> None:
    """Write the report of the working directory that the command line names, and print its path."""
    # Imported here, because --help should not wait for them.
    from fqs_jax.data.sources import documents
    from fqs_jax.reporting import collect
    from fqs_jax.reporting import page as page_lib

    root = paths.expand(cli.one_workdir(argv, _WORKDIR.value))
    out = paths.expand(_OUT.value) if _OUT.value else root / "report.html"
    collect.read_training(root)  # fails early, before text is read
    _check_writable(out, page_lib.is_page)
    settings = collect.Settings(
        text=_TEXT.value,
        documents=tuple(documents.read_documents(_TEXT.value)) if _TEXT.value else (),
        stage=_STAGE.value,
        tokens=_TOKENS.value,
        max_tokens=_MAX_TOKENS.value,
        samples=_SAMPLES.value,
        seed=_SEED.value,
    )
    report = collect.collect(
        root, settings, lambda line: say(printable(line)), cli.mesh_from_flags()
    )
    files.write_text(out, page_lib.page(report))
    print(printable(str(paths.full(out))))


def _check_writable(out: Path, is_page: Callable[[bytes, bytes], bool]) -> None:
    """Refuse a path that cannot be written before minutes of evaluation rather than after them."""
    outputs.check_ours(out, is_page, "report", "--out=FILE.html")
    try:
        files.replace(out.with_name(f"{out.name}.try"), lambda file: None)
        out.with_name(f"{out.name}.try").unlink()
    except OSError as error:
        raise UserError(
            f"cannot write {inputs.name(out)}: {error.strerror}; name another file with --out=FILE.html"
        ) from error


if __name__ == "__main__":
    cli.run(main, arguments=1)
