"""What few seeds say: means, spreads, and intervals by Student's t. Pure Python."""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEVEL = 0.95  # of intervals


class Summary(NamedTuple):
    """A sample.

    Attributes:
        mean: of it.
        spread: standard deviation, with n - 1; None of one value.
        half: half the width of the interval of the mean, ``t(n - 1) * spread / sqrt(n)``; None of one value.
        n: values.
    """

    mean: float
    spread: float | None
    half: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether all of the interval is on one side of 0. Not where it is a point: equal counts by chance, and no knowledge of spread."""
        return bool(self.half) and abs(self.mean) > (self.half or 0.0)


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and interval of the mean of at least one value.

    >>> found = summarise([1.0, 2.0, 3.0])
    >>> found.mean, found.spread, round(found.half, 4), found.n  # t(2) = 4.3027
    (2.0, 1.0, 2.4841, 3)
    """
    n = len(values)
    if n == 1:
        return Summary(values[0], None, None, 1)
    spread = stdev(values)
    return Summary(fmean(values), spread, t_quantile(n - 1) * spread / math.sqrt(n), n)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Summary | None:
    """The difference, seed by seed, over the seeds that both have; None if there are none.

    Two runs of one seed share the order of the data and most first weights, so that what a seed does to both is not counted as noise.
    """
    common = sorted(ours.keys() & theirs.keys())
    return summarise([ours[seed] - theirs[seed] for seed in common]) if common else None


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t that a share ``level`` of Student's distribution lies within, on both sides of 0, for whole degrees of freedom.

    >>> round(t_quantile(2), 3), round(t_quantile(30), 3)
    (4.303, 2.042)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < level else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) * tan(angle)): Abramowitz and Stegun (1964), formulas 26.7.3 and 26.7.4."""
    sine, square = math.sin(angle), math.cos(angle) ** 2
    if freedom % 2 == 0:
        term = total = 1.0
        for k in range(2, freedom, 2):
            term *= square * (k - 1) / k
            total += term
        return sine * total
    if freedom == 1:
        return 2 * angle / math.pi
    term = total = math.cos(angle)
    for k in range(3, freedom, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total)
