"""The variants of a sweep. Sweep configs import this file, so it imports nothing of the package."""

from __future__ import annotations

from collections.abc import Sequence

Setting = tuple[str, ...]  # "field=value", one or several together
Variant = tuple[str, tuple[str, ...], str, tuple[Setting, ...]]


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
