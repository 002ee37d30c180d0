"""The variants and benchmarks of a sweep. Sweep configs import this file, so it imports nothing."""

from __future__ import annotations

from collections.abc import Sequence

Setting = tuple[str, ...]  # "field=value", one or several together
Variant = tuple[str, tuple[str, ...], str, tuple[Setting, ...]]
Benchmark = tuple[str, str, str, str, str, int | None, int, int, int]


def variant(
    name: str, *overrides: str, stages: str = "all", bracket: Sequence[str | Sequence[str]] = ()
) -> Variant:
    """A variant for a sweep's config.

    Args:
      name: name of the variant and of its folder.
      overrides: "field=value" of the experiment's config.
      stages: numbers or names of stages, separated by commas, or "all".
      bracket: settings to choose from on validation items, each "field=value" or several of these.
    """
    given = (bracket,) if isinstance(bracket, str) else bracket
    settings = tuple((each,) if isinstance(each, str) else tuple(each) for each in given)
    return name, overrides, stages, settings


def benchmark(
    task: str,
    file: str,
    *,
    scoring: str = "letters",
    limit: int | None = None,
    seed: int = 0,
    thought_seeds: int = 4,
    labels_file: str = "",
    name: str = "",
    batch_size: int = 32,
) -> Benchmark:
    """A benchmark for a sweep's config: what `evaluate --task` takes by flags of these names.

    Args:
      file: its items, `--task_file` there; a path within the sweep's `benchmark_folder`, if that is set.
      name: in tables; "" = the task, and the scoring unless that is by letters.
    """
    scored = task if scoring == "letters" else f"{task} by {scoring}"
    shown = name or scored
    return task, file, shown, scoring, labels_file, limit, seed, thought_seeds, batch_size
