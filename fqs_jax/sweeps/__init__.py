"""Sweeps: one config varied over settings and seeds, its runs, and their table."""

from fqs_jax.sweeps.variants import benchmark, variant

__all__ = ["benchmark", "variant"]
