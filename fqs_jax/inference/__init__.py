"""A loaded model, the text it generates and the log-probabilities it assigns."""
