"""Plans: compute, memory and traffic of a step, compiled for devices that are absent."""
