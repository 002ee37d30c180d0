"""Programs that measure time, memory and resuming, run by hand: `python -m benchmarks.NAME`."""
