"""Quantiles of Student's distribution, for intervals over a few seeds, with nothing but math."""

import math


def student_t(share: float, freedom: int) -> float:
    """The t that ``share`` of Student's distribution lies within, from -t to t.

    The distribution function is a finite sum in ``atan(t / sqrt(freedom))`` for whole degrees of freedom
    (Abramowitz and Stegun, 26.7.3 and 26.7.4), solved by bisection; so nothing but math is needed.

    >>> round(student_t(0.95, 2), 4)
    4.3027
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < share else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)) for Student's T with ``freedom`` degrees of freedom."""
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
