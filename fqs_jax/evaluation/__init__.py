"""Evaluation: models compared by loss, accuracy and latency."""
