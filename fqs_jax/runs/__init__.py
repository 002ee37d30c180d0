"""Working directories: folders, records, checkpoints, metrics files; `load` reads a model from one."""

from fqs_jax.runs.loading import load

__all__ = ["load"]
