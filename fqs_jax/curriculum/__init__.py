"""Stages: the rows of the curriculum, their settings, objectives and checks."""

from fqs_jax.curriculum.stage import Stage, row

__all__ = ["Stage", "row"]
