"""Sweeps: one config varied over cells and seeds, collected in one table."""
