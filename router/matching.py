"""Owns pairing what has no order: which of one side belongs to which of the other, so that the pairs are worth most.

Must not know what is paired. scipy is loaded when something is paired, which is never in a worker.
"""

from collections.abc import Sequence


def best_pairs(worth: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """The pairs (row, column), each used at most once, whose worth adds up to the most there is.

    The linear assignment problem (Kuhn, "The Hungarian method", 1955; solved as Crouse, "On implementing 2D rectangular
    assignment algorithms", 2016). `worth` has shape (rows, columns) and is not negative; cubic in the longer side.
    """
    from scipy.optimize import linear_sum_assignment

    if not worth or not worth[0]:
        return []
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
