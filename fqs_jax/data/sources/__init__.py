"""Sources of text: files, tables, TFDS folders and the Hugging Face hub."""
