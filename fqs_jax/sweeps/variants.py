"""The variants of a sweep. Sweep configs import this file, so it imports nothing itself."""

from __future__ import annotations

Variant = tuple[str, tuple[str, ...], str]


def variant(name: str, *overrides: str, stages: str = "all") -> Variant:
    """A variant for a sweep's config.

    Args:
      name: name of the variant and of its folder.
      overrides: "field=value" of the experiment's config.
      stages: numbers or names of stages, separated by commas, or "all".
    """
    return name, overrides, stages
