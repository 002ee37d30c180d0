"""Benchmarks: items from files, a model's answers to them, and scores of the answers."""
