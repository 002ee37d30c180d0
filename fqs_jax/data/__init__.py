"""Training data: text and built-in tasks, read as rows of tokens in a reproducible order."""
