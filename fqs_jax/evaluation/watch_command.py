"""The watch command of `python -m fqs_jax.evaluate`: `--watch --teacher=W:3 --student=W:4 TEXT`."""

from __future__ import annotations

from absl import flags

from fqs_jax.data.sources import documents as documents_lib
from fqs_jax.data.sources import options as options_lib
from fqs_jax.evaluation import statistics, watch
from fqs_jax.evaluation.statistics import Interval
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import best, folders, loading
from fqs_jax.runtime import cli, paths, screen
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.progress import Progress

RETRAIN = 3  # exit code


def main() -> int:
    """Compare the models that the flags name on two texts, and print the verdict.

    Returns:
      The exit code: 0 keep, 3 retrain.
    """
    f = flags.FLAGS
    cli.require(teacher=f.teacher, student=f.student, text=f.text)
    watch.check_tolerances(**{"--tolerance": f.tolerance, "--loss_tolerance": f.loss_tolerance})
    options = options_lib.of_program(f.download)
    fresh = watch.spread(documents_lib.read_documents(f.text, options=options), f.documents)
    watch.check_count("fresh text", len(fresh))
    teacher, student = _load("teacher", f.teacher), _load("student", f.student)
    if teacher.thought is None:  # checked before the slow part
        raise UserError(f"--teacher={f.teacher} does not think; name a thinking stage")
    then = _reference(f.student, f.reference, f.documents)
    watch.check_count("training-time text", len(then))

    def measure(label: str, documents: list[str]) -> watch.Losses:
        with Progress(f"{label}: windows", 0, 0) as bar:
            batch_size = f.batch_size or 8
            return watch.measure(
                teacher, student, documents, f.seq_len, batch_size, f.seed, bar.advance_to
            )

    result = watch.judge(
        measure("fresh text", fresh),
        measure("training-time text", then),
        f.tolerance,
        f.loss_tolerance,
    )
    if f.json:
        screen.print_json(statistics.flat_fields(result))
    else:
        print(_lines(result))
    return RETRAIN if result.verdict == "retrain" else 0


def _load(flag: str, name: str) -> Loaded:
    """The model of WORKDIR:STAGE or of a folder."""
    folder, stage = _split(name)
    if stage is None and folders.existing_stages(paths.expand(folder)):
        raise UserError(f"--{flag}={name} is a working directory: add its stage, as in {name}:3")
    try:
        return loading.load(folder, stage, mesh=cli.mesh_from_flags())
    except UserError as error:
        raise UserError(f"--{flag}={name}: {error}") from error


def _split(name: str) -> tuple[str, str | None]:
    """Folder and stage of WORKDIR:STAGE; a folder that exists by this name, or has no colon, has no stage."""
    folder, colon, stage = name.rpartition(":")
    return (folder, stage) if colon and not paths.expand(name).is_dir() else (name, None)


def _reference(student: str, reference: str, limit: int) -> list[str]:
    """The documents for the gap at training time: those given, or those the student was trained on."""
    if reference:
        options = options_lib.of_program(flags.FLAGS.download)
        return watch.spread(documents_lib.read_documents(reference, options=options), limit)
    folder, stage = _split(student)
    if stage is None or stage == "init":
        raise UserError(
            f"--reference is missing: the training text of {student} is not recorded; give text like "
            "it with --reference=TEXT"
        )
    known = folders.existing_stages(paths.expand(folder))
    number = best.find(paths.expand(folder), known, stage)[0].number
    try:
        download = flags.FLAGS.download
        return watch.training_text(paths.expand(folder), number, limit, download)
    except UserError as error:
        raise UserError(
            f"the text of --student={student} cannot be used ({error}); give text like it with "
            "--reference=TEXT"
        ) from error


def _lines(result: watch.Verdict) -> str:
    return (
        f"loss on {result.documents} fresh documents ({result.tokens:,} tokens), nats a token: "
        f"student {result.student_nll:.4f}, teacher {result.teacher_nll:.4f}\n"
        f"on {result.documents_then} documents of training time: "
        f"student {result.student_nll_then:.4f}, teacher {result.teacher_nll_then:.4f}\n"
        f"gap {result.gap:+.4f}, at training time {result.gap_then:+.4f}\n"
        f"drift {_with_ends(result.drift)}\n"
        f"rise of the student's loss {_with_ends(result.rise)}\n"
        f"{result.verdict}: {_why(result)}"
    )


def _with_ends(change: Interval) -> str:
    return f"{change.value:+.4f} (95%: {change.low:+.4f} to {change.high:+.4f})"


def _why(result: watch.Verdict) -> str:
    if result.reason == "gap":
        return f"the drift is above {result.tolerance:g}; retrain the student"
    if result.reason == "loss":
        return (
            f"the student's loss rose by more than {result.loss_tolerance:g}, and not the student's "
            "alone: both models are foreign to this text; retrain teacher and student"
        )
    if result.reason == "student":
        return (
            f"the student's loss rose by more than {result.loss_tolerance:g}, and whether the teacher's did "
            "too is uncertain; add documents to find out, or retrain the student"
        )
    unsure = "; this is uncertain, add documents to narrow the intervals" if result.unsure else ""
    return (
        f"the drift is not above {result.tolerance:g}, nor the rise above "
        f"{result.loss_tolerance:g}{unsure}"
    )
