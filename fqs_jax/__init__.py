"""Fast Quiet-STaR in JAX: train a language model to think, to think shorter, and then without thinking."""

__version__ = "0.1.0"
