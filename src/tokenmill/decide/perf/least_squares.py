"""Least squares with weights that may not be negative, for problems of some tens of weights.

Exists because step times are sums of costs, none of which is negative, and the base install has no numpy.
It must not know step times.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul
from typing import Final

RIDGE: Final = 1e-10
"""A share of each weight's own scale that decides for the smaller weights where rows don't tell."""


def nonnegative_least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Return weights ``w >= 0`` with the least sum of squares of ``rows w - targets``.

    Lawson and Hanson's active set method ("Solving Least Squares Problems", 1974, chapter 23): weights at 0
    are freed one by one, the one that promises most first, and those that would turn negative are put back.
    """
    columns = list(zip(*rows, strict=True))
    size = len(columns)
    products = [[sum(map(mul, first, second)) for second in columns] for first in columns]
    right = [sum(map(mul, column, targets)) for column in columns]
    for i in range(size):
        products[i][i] = products[i][i] * (1 + RIDGE) + 1e-300
    weights, free = [0.0] * size, list[int]()
    for _ in range(3 * size):
        slack = {i: _gain(products[i], weights, right[i]) for i in range(size) if i not in free}
        best = max(slack, key=lambda i: slack[i] / products[i][i] ** 0.5, default=None)
        if best is None or slack[best] <= 1e-9 * abs(right[best]):
            break
        free.append(best)
        _settle(products, right, weights, free)
    return weights


def _gain(row: Sequence[float], weights: Sequence[float], right: float) -> float:
    """How fast the error falls as this weight rises."""
    fitted: float = sum(map(mul, row, weights))
    return right - fitted


def _settle(
    products: Sequence[Sequence[float]], right: Sequence[float], weights: list[float], free: list[int]
) -> None:
    """Move the free weights to their best values, putting back at 0 those that would turn negative."""
    while free:
        best = _solve([[products[i][j] for j in free] for i in free], [right[i] for i in free])
        if all(value > 0 for value in best):
            for i, value in zip(free, best, strict=True):
                weights[i] = value
            return
        share = min(
            weights[i] / (weights[i] - value) for i, value in zip(free, best, strict=True) if value <= 0
        )
        for i, value in zip(free, best, strict=True):
            weights[i] += share * (value - weights[i])
        for i in [
            i for i, value in zip(free, best, strict=True) if value <= 0 and weights[i] <= 1e-12 * abs(value)
        ]:
            weights[i] = 0.0
            free.remove(i)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with pivots; the matrix is positive definite."""
    size = len(right)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(matrix[row][column]))
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        right[column], right[pivot] = right[pivot], right[column]
        for row in range(column + 1, size):
            factor = matrix[row][column] / matrix[column][column]
            if factor:
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[column], strict=True)]
                right[row] -= factor * right[column]
    solution = [0.0] * size
    for row in reversed(range(size)):
        known = sum(matrix[row][column] * solution[column] for column in range(row + 1, size))
        solution[row] = (right[row] - known) / matrix[row][row]
    return solution
