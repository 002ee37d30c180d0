"""Working directories: folders, records, checkpoints, metrics files."""
