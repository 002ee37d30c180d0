"""Text and built-in tasks as rows of tokens, in an order that is a function of the step."""
