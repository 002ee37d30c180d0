"""GGUF files of llama.cpp and Ollama to stock Hugging Face folders.

header.py reads what a file says about itself, parts.py joins the files of a divided model, architectures.py
makes its config.json, weights.py its parameters, and tokenizer.py its tokenizer; conversion.py puts the parts
together. Everything in a file comes from a stranger, and is checked before it is used.
"""

from fqs_jax.gguf_files.conversion import convert

__all__ = ["convert"]
