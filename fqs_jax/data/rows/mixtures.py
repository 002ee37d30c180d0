"""Which source the rows of a mixture come from."""

from __future__ import annotations

from collections.abc import Sequence


def place(row: int, weights: Sequence[int]) -> tuple[int, int]:
    """The source of a row of the mixture, and which of that source's rows it is.

    Every source takes its exact share, evenly spread: of the first n rows it has had n times its
    share, give or take less than one row for every source. Sources take their rows in order and
    leave none out.

    The first source is spread evenly over all rows, the next over those that are left, and so on.
    """
    before, after = row, row + 1  # rows left to the sources still to come, up to this one
    total = sum(weights)
    for source, weight in enumerate(weights):
        rest = total - weight
        left_before, left_after = before * rest // total, after * rest // total
        if left_after - left_before < after - before:
            return source, before - left_before
        before, after, total = left_before, left_after, rest
    raise AssertionError("unreachable: the last source takes what is left")


def epoch_size(sizes: Sequence[int], weights: Sequence[int]) -> int:
    """Rows after which every source has been read through at least once."""
    total = sum(weights)
    longest = max(-(-size * total // weight) for size, weight in zip(sizes, weights, strict=True))
    return longest + (len(sizes) if len(sizes) > 1 else 0)
