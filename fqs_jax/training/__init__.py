"""Training: the optimiser, the step, the loop, and scores from a teacher."""
