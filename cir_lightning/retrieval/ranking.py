"""Embeddings become ranks once: the pure ranking engine that every figure, report and submission reads.

Shapes: Nq queries, S queries of a table, P pictures of a table, E embedding width, U pictures in any of the galleries of some sets, G
pictures in the gallery of one set, T most right answers of a query (at least 1), M most members of a query, c queries of a chunk, n
pictures of a ranked list. Column U of every score matrix stands for "not in the gallery" and always scores ``-inf``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cir_lightning.retrieval.protocol import lay_out, view
from cir_lightning.retrieval.scores import best, count_at_least, inner_products, sort_columns
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from cir_lightning.retrieval.protocol import Gallery, View
    from data_modules.records import EvaluationSet

MEMORY = 2**28  # bytes
BYTES = 12  # that a query takes per picture: its score in float32, a copy of it to count in, and less than another one
CHUNK = 512  # queries at a time where memory allows more; the processor's caches like it


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """What the gallery looks like from each query; all tensors are on the CPU.

    Attributes:
        ranks: (Nq,) int64, 1-based rank of the best right answer; G + 1 if no right answer can be reached.
        answer_ranks: (Nq, T) int64, 1-based rank of each right answer among all pictures, in the order of ``query.targets``; G + 1 for
            one that cannot be reached, and beyond the last one.
        subset_ranks: (Nq,) int64, 1-based rank of the first right answer among the query's members; None without a subset metric.
        top: (Nq, n) int64, gallery indices, best first; equal scores by place in the table; a removed reference never appears.
        scores: (Nq, n) float32, their scores.
        unreachable: how many queries have targets of which none can be reached: not in the gallery, or the removed reference.
    """

    ranks: Tensor
    answer_ranks: Tensor
    subset_ranks: Tensor | None
    top: Tensor
    scores: Tensor
    unreachable: int


def rank(queries: Tensor, gallery: Tensor, evaluation: EvaluationSet, *, top: int = 50, memory: int = MEMORY) -> Ranking:
    """Rank the gallery for every query under the protocol of an evaluation set: :func:`rank_all` of one set with tables of its own.

    Args:
        queries: (Nq, E) float of any precision; row i is ``evaluation.queries[i]``.
        gallery: (G, E) float of any precision; row i is ``evaluation.gallery[i]``.
        evaluation: queries, gallery and protocol.
        top: length of the ranked lists, 0 for none; n = min(top, pictures to rank for the query that has the fewest).
        memory: see :func:`rank_all`.

    Raises:
        ValueError: the vectors do not belong to this evaluation set: other counts.
        UserError: see :func:`rank_all`.

    Example:
        >>> from data_modules.records import EvaluationSet, Query
        >>> evaluation = EvaluationSet("toy", (Query("q", "a", "but blue", ("c",)),), ("a", "b", "c"), recall_at=(1, 2))
        >>> ranking = rank(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]]), evaluation)
        >>> ranking.ranks.tolist(), ranking.top.tolist()
        ([2], [[1, 2]])
    """
    counts = (len(evaluation.queries), len(evaluation.gallery))
    if (len(queries), len(gallery)) != counts:
        raise ValueError(
            f"evaluation set {evaluation.name!r} has {counts[0]} queries and {counts[1]} gallery pictures; "
            f"got {len(queries)} and {len(gallery)} vectors"
        )
    rows = torch.arange(len(queries))
    return rank_all(queries, gallery, [evaluation], rows=[rows], names=evaluation.gallery, top=top, memory=memory)[0]


@torch.no_grad()
def rank_all(
    queries: Tensor,
    gallery: Tensor,
    evaluations: Sequence[EvaluationSet],
    *,
    rows: Sequence[Tensor],
    names: Sequence[str],
    top: int = 50,
    memory: int = MEMORY,
) -> list[Ranking]:
    """Rank for every query of several evaluation sets. Sets with the same queries, other protocols of a benchmark, share the scores.

    Ties count against the model: every wrong picture that scores at least as much as a right answer ranks before it. For ``ranks``, other
    right answers never do; for ``answer_ranks``, those with a higher score do, and among equal ones the first listed comes last. Scores
    are float32, rounded from float64 products: unlike float32 products, these give equal vectors equal scores wherever they lie in the
    matrix, and neither autocast nor ``torch.set_float32_matmul_precision`` coarsens them.

    Args:
        queries: (S, E) float of any precision.
        gallery: (P, E) float of any precision; row i is ``names[i]``.
        evaluations: the sets.
        rows: of each set, (Nq,) int64: rows of ``queries`` that are its queries.
        names: picture names, without duplicates, those of all galleries among them.
        top: length of the ranked lists, 0 for none; n = min(top, pictures to rank for the query that has the fewest).
        memory: bytes that the scores of a chunk of queries may take; it does not change the result.

    Returns:
        One ranking for each set.

    Raises:
        UserError: there are no queries; a vector is not finite; members are incomplete; a K exceeds the number of pictures to rank.
    """
    _check_finite(gallery, "gallery picture", names)
    place = {name: index for index, name in enumerate(names)}
    same: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, (evaluation, _) in enumerate(zip(evaluations, rows, strict=True)):
        same.setdefault(tuple((query.reference, query.caption) for query in evaluation.queries), []).append(number)
    rankings: dict[int, Ranking] = {}
    for numbers in same.values():
        pictures, galleries = lay_out([evaluations[number].gallery for number in numbers], place)
        views = [view(evaluations[number], galleries[evaluations[number].gallery], top) for number in numbers]
        asked = queries[rows[numbers[0]].to(queries.device)]
        rankings |= zip(numbers, _rank_views(asked, gallery, pictures, views, memory), strict=True)
    return [rankings[number] for number in range(len(evaluations))]


def _rank_views(queries: Tensor, table: Tensor, pictures: Tensor, views: Sequence[View], memory: int) -> Iterable[Ranking]:
    """Rank the pictures of columns (U + 1,) for queries (Nq, E) that all the views have."""
    first = views[0].evaluation
    _check_finite(queries, f"evaluation set {first.name!r}, query", [query.id for query in first.queries])
    device = torch.device("cpu") if queries.device.type == "mps" else queries.device  # MPS has no float64
    chunk = max(1, min(CHUNK, len(queries), memory // (BYTES * len(pictures))))
    matrix = torch.full((chunk, len(pictures)), -torch.inf, device=device)
    place = pictures.to(device)
    answers = [next(i for i, other in enumerate(views) if torch.equal(one.right, other.right)) for one in views]
    chunks: list[list[list[Tensor]]] = [[] for _ in views]
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        scores = matrix[: rows.stop - rows.start]
        inner_products(queries[rows], table, pictures[:-1].to(table.device), out=scores[:, :-1])
        lists = _lists(scores, place, views)
        counts: dict[tuple[int, tuple[int, int]], Tensor] = {}
        for one, key, done in zip(views, answers, chunks, strict=True):
            results = (*_ranks(scores, rows, one, key, counts), *_top(scores, rows, one, lists, place))
            done.append([result.cpu() for result in results])
    return map(_assemble, views, chunks)


def _lists(scores: Tensor, place: Tensor, views: Sequence[View]) -> dict[Gallery, Tensor]:
    """Columns of each gallery's best pictures, best first; one more than its longest list has, as a reference may be taken out."""
    length = 1 + max(one.length for one in views)
    found: dict[tuple[int, int], Tensor] = {}
    lists = {}
    for gallery in dict.fromkeys(one.gallery for one in views if one.length and not one.evaluation.members_only):
        found |= {part: part[0] + best(scores[:, slice(*part)], length) for part in gallery.parts if part not in found}
        lists[gallery] = sort_columns(scores, torch.cat([found[part] for part in gallery.parts], dim=1), place)[:, :length]
    return lists


def _top(scores: Tensor, rows: slice, one: View, lists: dict[Gallery, Tensor], place: Tensor) -> tuple[Tensor, Tensor]:
    """Gallery indices and scores of the ranked lists, (c, n) each."""
    if one.length and not one.evaluation.members_only:
        found = lists[one.gallery]
        gap = (found[:, : one.length] == one.removed[rows].to(scores.device)).cumsum(dim=1)
        columns = found.gather(1, torch.arange(one.length, device=scores.device) + gap)
    else:
        columns = sort_columns(scores, one.members[rows].to(scores.device), place)[:, : one.length]
    return one.gallery.index.to(scores.device)[columns], scores.gather(1, columns)


def _ranks(
    scores: Tensor, rows: slice, one: View, key: int, counts: dict[tuple[int, tuple[int, int]], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks (c,), answer ranks (c, T) and subset ranks (c,).

    Args:
        scores: (c, U + 1) float32.
        rows: which queries these are.
        one: the set to read.
        key: equal for views with equal answers.
        counts: by key and slice, how many pictures of the slice reach each answer's score, (c, T); the views fill it together.
    """
    right, removed, members = (columns[rows].to(scores.device) for columns in (one.right, one.removed, one.members))
    answers, among_members = scores.gather(1, right), scores.gather(1, members)
    if one.evaluation.members_only:
        reached = count_at_least(among_members, answers)
    else:
        counts |= {(key, part): count_at_least(scores[:, slice(*part)], answers) for part in one.gallery.parts if (key, part) not in counts}
        reached = torch.stack([counts[key, part] for part in one.gallery.parts]).sum(dim=0)
    ahead = reached - count_at_least(scores.gather(1, torch.cat([right, removed], dim=1)), answers)
    last_first = answers.flip(1).argsort(dim=1, descending=True, stable=True)  # among equal answers, the first listed comes last
    better = last_first.argsort(dim=1).flip(1)
    lost, out = answers == -torch.inf, len(one.evaluation.gallery) + 1
    ranks = (1 + ahead).masked_fill(lost, out).amin(dim=1)
    answer_ranks = (1 + ahead + better).masked_fill(lost, out)
    subset_ranks = 1 + count_at_least(among_members, answers[:, :1])
    return ranks, answer_ranks, subset_ranks.masked_fill(lost[:, :1], out).flatten()


def _assemble(one: View, chunks: Sequence[Sequence[Tensor]]) -> Ranking:
    ranks, answer_ranks, subset_ranks, top, scores = (torch.cat(results) for results in zip(*chunks, strict=True))
    asked = torch.tensor([bool(query.targets) for query in one.evaluation.queries])
    unreachable = int((asked & (ranks > len(one.evaluation.gallery))).sum())
    return Ranking(ranks, answer_ranks, subset_ranks if one.has_subset else None, top, scores, unreachable)


def _check_finite(vectors: Tensor, what: str, names: Sequence[str]) -> None:
    fine = vectors.amax(dim=1).isfinite() & vectors.amin(dim=1).isfinite()  # makes no temporaries of the table's size
    broken = (~fine).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"{what} {names[broken[0]]!r}: its vector has NaN or inf ({len(broken)} of {len(names)} such vectors); "
            f"train with a lower learning rate or with bf16-mixed or 32-true precision, and test an earlier checkpoint"
        )
