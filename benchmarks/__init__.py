"""Programs that measure, kill runs and break inputs; run one with `python -m benchmarks.NAME`."""
