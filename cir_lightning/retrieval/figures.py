"""From ranks to the figures of a table.

Shapes: Nq queries, T most right answers of a query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from cir_lightning.retrieval.ranking import Ranking
    from data_modules.records import EvaluationSet


def score(ranking: Ranking, evaluation: EvaluationSet) -> dict[str, float]:
    """The figures of a ranking in percent, of a set whose queries have targets; right answers that cannot be reached are misses.

    ``R@K`` and ``R_subset@K`` are the share of queries whose right answer has a rank of at most K. The average precision of a query at K
    is the sum of i / rank over its right answers with a rank of at most K, the i-th best of them having rank ``rank``, divided by
    min(number of its targets, K); ``mAP@K`` is the mean over the queries.

    Args:
        ranking: of the set.
        evaluation: the set.

    Example:
        >>> from cir_lightning.retrieval.ranking import rank
        >>> from data_modules.records import EvaluationSet, Query
        >>> evaluation = EvaluationSet("toy", (Query("q", "a", "but blue", ("c", "d")),), tuple("abcd"), recall_at=(1,), map_at=(2,))
        >>> score(rank(torch.ones(1, 1), torch.tensor([[4.0], [3.0], [2.0], [1.0]]), evaluation), evaluation)
        {'R@1': 0.0, 'mAP@2': 25.0}

    Source:
        R@K, R_subset@K: Liu et al., "Image Retrieval on Real-life Images with Pre-trained Vision-and-Language Models" (CIRR), ICCV 2021,
        section 5. mAP@K: Baldrati et al., "Zero-Shot Composed Image Retrieval with Textual Inversion" (CIRCO), ICCV 2023, section 4.
    """
    ranks = ranking.ranks if evaluation.recall_of == "any" else ranking.answer_ranks[:, 0]
    figures = {f"R@{k}": _recall(ranks, k) for k in evaluation.recall_at}
    if ranking.subset_ranks is not None:
        figures |= {f"R_subset@{k}": _recall(ranking.subset_ranks, k) for k in evaluation.subset_recall_at}
    targets = torch.tensor([len(query.targets) for query in evaluation.queries])
    figures |= {f"mAP@{k}": _mean_average_precision(ranking.answer_ranks, targets, k) for k in evaluation.map_at}
    if evaluation.mean_of:
        figures["mean"] = sum(figures[name] for name in evaluation.mean_of) / len(evaluation.mean_of)
    return figures


def names(evaluation: EvaluationSet) -> list[str]:
    """The figures that :func:`score` gives of a set."""
    has_subset = not evaluation.members_only and any(query.members for query in evaluation.queries)
    return [
        *(f"R@{k}" for k in evaluation.recall_at),
        *(f"R_subset@{k}" for k in evaluation.subset_recall_at if has_subset),
        *(f"mAP@{k}" for k in evaluation.map_at),
        *(["mean"] if evaluation.mean_of else []),
    ]


def averages(scored: Iterable[tuple[EvaluationSet, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Name of an average -> the unweighted means, over its sets, of the figures that all of them have.

    Args:
        scored: evaluation sets with their figures.

    Example:
        >>> from data_modules.records import EvaluationSet
        >>> dress, shirt = (EvaluationSet(name, (), (), average="all") for name in ("dress", "shirt"))
        >>> averages([(dress, {"R@10": 30.0, "R@50": 50.0}), (shirt, {"R@10": 40.0})])
        {'all': {'R@10': 35.0}}
    """
    groups: dict[str, list[Mapping[str, float]]] = {}
    for evaluation, figures in scored:
        if evaluation.average:
            groups.setdefault(evaluation.average, []).append(figures)
    return {
        name: {
            figure: sum(figures[figure] for figures in group) / len(group)
            for figure in group[0]
            if all(figure in figures for figures in group)
        }
        for name, group in groups.items()
    }


def _recall(ranks: Tensor, k: int) -> float:
    return 100.0 * int((ranks <= k).sum()) / len(ranks)


def _mean_average_precision(answer_ranks: Tensor, targets: Tensor, k: int) -> float:
    """Of ranks (Nq, T) in any order and numbers of targets (Nq,), in percent."""
    ranks = answer_ranks.sort(dim=1).values.double()
    precisions = torch.arange(1, ranks.shape[1] + 1) / ranks
    found = precisions.where(ranks <= k, 0).sum(dim=1)
    return 100.0 * float((found / targets.clamp(max=k)).mean())
