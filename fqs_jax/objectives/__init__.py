"""Losses: pure functions (params, batch, key) -> (loss, metrics)."""
