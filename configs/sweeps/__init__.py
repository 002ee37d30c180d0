"""Sweeps: one file each, run with `python -m fqs_jax.sweep --config=configs/sweeps/NAME.py`."""
