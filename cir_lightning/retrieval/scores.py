"""Operations on a chunk of the score matrix, bounded in memory and exact: equal vectors, equal scores; equal scores, a fixed order.

Shapes: E embedding width, P pictures of a table, c queries of a chunk, w columns, n of them chosen, T thresholds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 2048  # gallery rows that are held in float64 at a time


def inner_products(queries: Tensor, table: Tensor, pictures: Tensor, out: Tensor) -> None:
    """Score some pictures of a table, in float32 rounded from float64 products.

    Unlike float32 products, these give equal vectors equal scores wherever they lie in the matrix, and neither autocast nor
    ``torch.set_float32_matmul_precision`` coarsens them.

    Args:
        queries: (c, E) float of any precision.
        table: (P, E) float of any precision.
        pictures: (w,) int64, rows of the table.
        out: (c, w) float32, on the device that is to work; what is written.
    """
    left = queries.to(out.device, torch.float64)
    for start in range(0, len(pictures), BLOCK):
        block = table[pictures[start : start + BLOCK]].to(out.device, torch.float64)
        out[:, start : start + len(block)] = left @ block.T


def count_at_least(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many scores (c, w) of each row reach each of its thresholds (c, T): (c, T) int64; exact up to w = 2^24."""
    # In floats and in place, which is three times faster than in booleans.
    counts = [scores.clone().ge_(threshold[:, None]).sum(dim=1) for threshold in thresholds.T]
    return torch.stack(counts, dim=1).long()


def best(scores: Tensor, n: int) -> Tensor:
    """Columns of the highest scores in any order; among equal scores, the first columns.

    Args:
        scores: (c, w) float.
        n: how many, at least 1.

    Returns:
        (c, min(n, w)) int64.
    """
    # The n + 1 highest lie in the n + 1 groups with the highest maxima: topk, which is slow, need not see the others.
    width = scores.shape[1]
    size = max(1, math.isqrt(width // n))
    groups = width // size
    maxima = scores[:, : groups * size].reshape(len(scores), size, groups).amax(dim=1)
    leading = maxima.topk(min(n + 1, groups), dim=1).indices[:, None]
    columns = (leading + groups * torch.arange(size, device=scores.device)[:, None]).flatten(1)
    rest = torch.arange(groups * size, width, device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, rest], dim=1)
    values, at = scores.gather(1, columns).topk(min(n + 1, width), dim=1)
    chosen = columns.gather(1, at[:, :n])
    if width > n:
        for row in (values[:, n - 1] == values[:, n]).nonzero().flatten().tolist():  # the last place is contested: topk chose at random
            above, level = scores[row] > values[row, n], scores[row] == values[row, n]
            chosen[row] = torch.cat([above.nonzero(), level.nonzero()]).flatten()[:n]
    return chosen


def sort_columns(scores: Tensor, columns: Tensor, place: Tensor) -> Tensor:
    """Sort columns by falling score, equal ones by place.

    Args:
        scores: (c, w) float.
        columns: (c, n) int64.
        place: (w,) int64, of each column.

    Returns:
        (c, n) int64.
    """
    columns = columns.gather(1, place[columns].argsort(dim=1))
    return columns.gather(1, scores.gather(1, columns).argsort(dim=1, descending=True, stable=True))
