"""Thoughts: their parameters, how they are sampled, scored and mixed into the prediction."""
