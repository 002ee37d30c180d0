"""Rows of a batch: token ids cut and packed, in an order that is a function of the step."""
