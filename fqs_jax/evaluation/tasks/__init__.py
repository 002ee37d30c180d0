"""Benchmarks: items from files, what is read of a model for each, and numbers from that."""
