"""Rows of token ids: cut or packed from documents, shuffled and batched."""
