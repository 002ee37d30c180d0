"""Experiments: one file each, read with `python -m fqs_jax.launch --config=configs/NAME.py`."""
