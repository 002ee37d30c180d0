"""Files, processes, devices and flags: everything that knows nothing of models."""
