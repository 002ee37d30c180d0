"""Fast Quiet-STaR in JAX: language models that think, think shorter, then answer without."""

__version__ = "0.1.0"
