"""Built-in tasks: problems with known answers, made from a seed."""
