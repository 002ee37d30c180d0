"""Timing programs, run by hand: `python -m benchmarks.NAME`."""
