"""Sweeps: one config varied over settings and seeds, its runs, and their table."""

from fqs_jax.sweeps.variants import variant

__all__ = ["variant"]
