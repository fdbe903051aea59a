"""Embeddings become ranks once: the pure ranking engine that every figure, report and submission reads.

Shapes: Nq queries, G gallery pictures, E embedding width, T most right answers of a query, M most subset members of a query, c queries of
a chunk, n pictures of a ranked list. Column G of every score matrix stands for "not in the gallery" and always scores ``-inf``.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from data_modules.records import EvaluationSet, Query

_BLOCK = 8192  # gallery rows that are held in float64 at a time


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """What the gallery looks like from each query; all tensors are on the CPU.

    Attributes:
        ranks: (Nq,) int64, 1-based rank of the best right answer; G + 1 if no right answer can be reached.
        subset_ranks: (Nq,) int64, 1-based rank of the first right answer among the query's members; None without a subset metric.
        top: (Nq, n) int64, gallery indices, best first; equal scores by gallery index; a removed reference never appears.
        scores: (Nq, n) float32, their scores.
        unreachable: how many queries have no right answer in the gallery (once the reference is removed, where the protocol does so).
    """

    ranks: Tensor
    subset_ranks: Tensor | None
    top: Tensor
    scores: Tensor
    unreachable: int


@torch.no_grad()
def rank(queries: Tensor, gallery: Tensor, evaluation: EvaluationSet, *, top: int = 50, chunk: int = 512) -> Ranking:
    """Rank the gallery for every query under the protocol of an evaluation set.

    Ties count against the model: every wrong picture that scores at least as much as the best right answer ranks before it. Other right
    answers never do. Scores are float32, rounded from float64 products: unlike float32 products, these give equal vectors equal scores
    wherever they lie in the matrix, and neither autocast nor ``torch.set_float32_matmul_precision`` coarsens them.

    Args:
        queries: (Nq, E) float of any precision; row i is ``evaluation.queries[i]``.
        gallery: (G, E) float of any precision; row i is ``evaluation.gallery[i]``.
        evaluation: queries, gallery and protocol.
        top: length of the ranked lists; n = min(top, G, or G - 1 where the reference is removed).
        chunk: queries that are scored at a time; it bounds the memory (10 to 30 bytes * chunk * G) and does not change the result.

    Raises:
        ValueError: the vectors do not belong to this evaluation set: other counts.
        UserError: there are no queries; a vector is not finite; a K exceeds the number of candidates; the subset members are incomplete.

    Example:
        >>> from data_modules.records import EvaluationSet, Query
        >>> evaluation = EvaluationSet("toy", (Query("q", "a", "but blue", ("c",)),), ("a", "b", "c"), recall_at=(1, 2))
        >>> ranking = rank(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]]), evaluation)
        >>> ranking.ranks.tolist(), ranking.top.tolist(), recalls(ranking, evaluation)
        ([2], [[1, 2]], {'R@1': 0.0, 'R@2': 100.0})

    Source:
        Recall@K and Recall_subset@K: Liu et al., "Image Retrieval on Real-life Images with Pre-trained Vision-and-Language Models"
        (CIRR), ICCV 2021, section 5.
    """
    _check(queries, gallery, evaluation)
    size = len(evaluation.gallery)
    position = {name: index for index, name in enumerate(evaluation.gallery)}
    references = _columns([[query.reference] if evaluation.remove_reference else [] for query in evaluation.queries], position)
    right = _columns([query.targets for query in evaluation.queries], position)
    members = _columns(_rivals(evaluation, position), position)
    device = torch.device("cpu") if queries.device.type == "mps" else queries.device  # MPS has no float64

    chunks = []
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        scores = _score(queries[part], gallery, device)
        scores.scatter_(1, references[part].to(device), -torch.inf)
        best = _best(scores[:, :size], min(top, size - evaluation.remove_reference))
        in_gallery, in_subset = _ranks(scores, right[part].to(device), members[part].to(device))
        chunks.append([result.cpu() for result in (in_gallery, in_subset, best, scores.gather(1, best))])
    ranks, subset_ranks, indices, values = (torch.cat(results) for results in zip(*chunks, strict=True))
    return Ranking(ranks, subset_ranks if members.shape[1] else None, indices, values, unreachable=int((ranks > size).sum()))


def recalls(ranking: Ranking, evaluation: EvaluationSet) -> dict[str, float]:
    """The figures of a ranking in percent: ``R@K``, and ``R_subset@K`` where queries have members; unreachable queries are misses."""
    figures = {f"R@{k}": _percent(ranking.ranks, k) for k in evaluation.recall_at}
    if ranking.subset_ranks is not None:
        figures |= {f"R_subset@{k}": _percent(ranking.subset_ranks, k) for k in evaluation.subset_recall_at}
    return figures


def averages(figures: Mapping[EvaluationSet, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The unweighted means of the figures of sets with the same ``average``, under this name; of the figures that all of them have."""
    groups: dict[str, list[Mapping[str, float]]] = {}
    for evaluation, values in figures.items():
        if evaluation.average:
            groups.setdefault(evaluation.average, []).append(values)
    return {
        name: {key: fmean(one[key] for one in group) for key in group[0] if all(key in one for one in group)}
        for name, group in groups.items()
    }


def _percent(ranks: Tensor, k: int) -> float:
    return 100.0 * int((ranks <= k).sum()) / len(ranks)


def _score(queries: Tensor, gallery: Tensor, device: torch.device) -> Tensor:
    """(c, E) and (G, E) -> (c, G + 1) float32 inner products; the last column is ``-inf``."""
    queries = queries.to(device, torch.float64)
    scores = torch.full((len(queries), len(gallery) + 1), -torch.inf, device=device)
    for start in range(0, len(gallery), _BLOCK):
        block = gallery[start : start + _BLOCK].to(device, torch.float64)
        scores[:, start : start + len(block)] = queries @ block.T
    return scores


def _best(scores: Tensor, n: int) -> Tensor:
    """(c, G) -> (c, n) columns of the highest scores, best first, equal scores by column."""
    values, columns = scores.topk(n, dim=1)
    tied = (scores >= values[:, -1:]).sum(dim=1) > n  # the last place is contested: topk chose arbitrarily
    columns[tied] = scores[tied].argsort(dim=1, descending=True, stable=True)[:, :n]
    columns = columns.sort(dim=1).values
    order = scores.gather(1, columns).argsort(dim=1, descending=True, stable=True)
    return columns.gather(1, order)


def _ranks(scores: Tensor, right: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks in the gallery and among the members, each (c,) int64.

    An unreachable query needs no case of its own: its best right answer scores ``-inf``, all G pictures score at least that.

    Args:
        scores: (c, G + 1) float32, the reference already at ``-inf`` where it is removed.
        right: (c, T) int64, columns of the right answers, the first one first.
        members: (c, M) int64, columns of the members other than the reference.
    """
    answers = scores.gather(1, right)
    wrong = scores.scatter(1, right, -torch.inf)
    ahead = (wrong[:, :-1] >= answers.amax(dim=1, keepdim=True)).sum(dim=1)
    ahead_in_subset = (wrong.gather(1, members) >= answers[:, :1]).sum(dim=1)
    return 1 + ahead, 1 + ahead_in_subset


def _columns(names: Sequence[Sequence[str]], position: dict[str, int]) -> Tensor:
    """Picture names of each query as (Nq, longest) int64 columns, filled up with column G: not in the gallery."""
    absent = len(position)
    longest = max(len(row) for row in names)
    return torch.tensor(
        [[position.get(name, absent) for name in row] + [absent] * (longest - len(row)) for row in names], dtype=torch.int64
    ).view(len(names), longest)


def _rivals(evaluation: EvaluationSet, position: dict[str, int]) -> list[list[str]]:
    """The members of each query without its reference: what the first right answer is ranked among."""
    rivals = [[name for name in query.members if name != query.reference] for query in evaluation.queries]
    if not any(rivals):
        return rivals
    for query, names in zip(evaluation.queries, rivals, strict=True):
        _check_members(query, names, evaluation, position)
    return rivals


def _check_members(query: Query, names: list[str], evaluation: EvaluationSet, position: dict[str, int]) -> None:
    where = f"evaluation set {evaluation.name!r}, query {query.id!r}"
    if not names:
        raise UserError(f"{where}: no subset members, but other queries have some; give every query its members, or none")
    if missing := [name for name in names if name not in position]:
        raise UserError(f"{where}: subset member {missing[0]!r} is not in the gallery; add it there or take it out of the members")
    if query.targets[0] not in names:
        raise UserError(f"{where}: the target {query.targets[0]!r} is not among the subset members other than the reference; add it")
    if (k := max(evaluation.subset_recall_at, default=0)) > len(names):
        raise UserError(f"{where}: R_subset@{k} of {len(names)} members; set subset_recall_at to {len(names)} at most")


def _check(queries: Tensor, gallery: Tensor, evaluation: EvaluationSet) -> None:
    counts = (len(evaluation.queries), len(evaluation.gallery))
    if (len(queries), len(gallery)) != counts:
        raise ValueError(
            f"evaluation set {evaluation.name!r} has {counts[0]} queries and {counts[1]} gallery pictures; "
            f"got {len(queries)} and {len(gallery)} vectors"
        )
    if not evaluation.queries:
        raise UserError(f"evaluation set {evaluation.name!r} has no queries; check its annotation file and split")
    candidates = len(evaluation.gallery) - evaluation.remove_reference
    if (k := max(evaluation.recall_at, default=0)) > candidates:
        without = " without the reference" if evaluation.remove_reference else ""
        raise UserError(
            f"evaluation set {evaluation.name!r}: R@{k} of a gallery of {candidates} pictures{without}; "
            f"set recall_at to {candidates} at most, or enlarge the gallery"
        )
    _check_finite(queries, [f"query {query.id!r}" for query in evaluation.queries], evaluation.name)
    _check_finite(gallery, [f"gallery picture {name!r}" for name in evaluation.gallery], evaluation.name)


def _check_finite(vectors: Tensor, names: list[str], where: str) -> None:
    broken = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"evaluation set {where!r}: the vector of {names[broken[0]]} has NaN or inf ({len(broken)} of {len(names)} such vectors); "
            f"train with a lower learning rate or with bf16-mixed or 32-true precision, and test an earlier checkpoint"
        )
