"""The decoder: configuration, attention and its back ends, vocabulary, placement of parameters."""
