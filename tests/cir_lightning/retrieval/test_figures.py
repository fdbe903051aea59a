"""Figures by hand-worked tables, and mAP against the way CIRCO's official evaluator goes: ranked names, cumulated hits."""

import numpy as np
import pytest
import torch

from cir_lightning.retrieval.figures import averages, names, score
from cir_lightning.retrieval.ranking import rank
from data_modules.records import EvaluationSet, Query

FALLING = torch.arange(10.0, 0, -1)[:, None]  # the gallery a b c ... j scores in this order


def figures(*targets, **protocol):
    queries = tuple(Query(f"q{i}", "none", "", answers) for i, answers in enumerate(targets))
    evaluation = EvaluationSet("hand", queries, tuple("abcdefghij"), remove_reference=False, **{"recall_at": (), **protocol})
    return score(rank(torch.ones(len(queries), 1), FALLING, evaluation), evaluation)


@pytest.mark.parametrize(
    ("targets", "k", "expected"),
    [
        ("a", 1, 1),
        ("b", 1, 0),
        ("b", 5, 1 / 2),
        ("acg", 2, (1 / 1) / 2),  # K is the divisor
        ("gca", 5, (1 / 1 + 2 / 3) / 3),  # the order of the targets does not matter
        ("acg", 10, (1 / 1 + 2 / 3 + 3 / 7) / 3),
        ("bx", 5, (1 / 2) / 2),  # x is in no gallery, but a target all the same
        ("xyz", 5, 0),
        ("abcdefgh", 5, 1),
    ],
)
def test_average_precision_by_hand(targets, k, expected):
    assert figures(tuple(targets), map_at=(k,)) == {f"mAP@{k}": pytest.approx(100 * expected)}


def test_map_is_the_mean_over_queries_with_different_numbers_of_targets():
    assert figures(("b",), ("a", "c", "g"), map_at=(5,)) == {"mAP@5": pytest.approx(100 * (1 / 2 + 5 / 9) / 2)}


def test_recall_of_any_and_of_the_first():
    assert figures(("e", "b"), recall_at=(1, 2, 5)) == {"R@1": 0, "R@2": 100, "R@5": 100}
    assert figures(("e", "b"), recall_at=(1, 2, 4, 5), recall_of="first") == {"R@1": 0, "R@2": 0, "R@4": 0, "R@5": 100}
    assert figures(("x", "a"), recall_at=(1, 10), recall_of="first") == {"R@1": 0, "R@10": 0}


@pytest.mark.parametrize("members_only", [False, True])
@pytest.mark.parametrize("members", [(), ("a", "b", "c", "d")])
@pytest.mark.parametrize("mean_of", [(), ("R@1",)])
def test_names_are_known_before_anything_is_scored(members, members_only, mean_of):
    if members_only and not members:
        return
    query = Query("q", "a", "", ("b",), members)
    ks = {"recall_at": (1, 2), "subset_recall_at": (1, 3), "map_at": (2,)}
    evaluation = EvaluationSet("hand", (query,), tuple("abcdefghij"), members_only=members_only, mean_of=mean_of, **ks)
    assert names(evaluation) == list(score(rank(torch.ones(1, 1), FALLING, evaluation), evaluation))


def official_circo(ranked, targets, ks):
    """Per query: hits among the ranked names, precision at every hit, divided by min(number of targets, K); recall of the first one."""
    sums = {f"R@{k}": 0.0 for k in ks} | {f"mAP@{k}": 0.0 for k in ks}
    for order, right in zip(ranked, targets, strict=True):
        hits = np.isin(order, right)
        precisions = np.cumsum(hits) * hits / np.arange(1, len(order) + 1)
        for k in ks:
            sums[f"R@{k}"] += right[0] in order[:k]
            sums[f"mAP@{k}"] += precisions[:k].sum() / min(len(right), k)
    return {name: 100 * total / len(targets) for name, total in sums.items()}


@pytest.mark.parametrize("remove_reference", [False, True])
def test_agrees_with_the_official_evaluator_of_circo(remove_reference):
    rng = np.random.default_rng(5)
    names = np.array([f"{i:012d}" for i in range(300)])
    queries, vectors = [], []
    gallery = rng.standard_normal((300, 8))
    for i in range(60):
        reference, *right = rng.choice(300, 2 + i % 14, replace=False)
        queries.append(Query(str(i), names[reference], "", tuple(names[right].tolist())))
        vectors.append(gallery[right].mean(0) + 0.5 * rng.standard_normal(8))
    ks = (5, 10, 25, 50)
    evaluation = EvaluationSet(
        "circo",
        tuple(queries),
        tuple(names.tolist()),
        remove_reference,
        recall_at=ks,
        map_at=ks,
        recall_of="first",
        mean_of=("mAP@5", "R@50"),
    )
    vectors, gallery = torch.tensor(np.array(vectors)), torch.tensor(gallery)
    found = score(rank(vectors, gallery, evaluation), evaluation)
    order = np.argsort(-(vectors @ gallery.T).numpy(), axis=1)
    ranked = [
        [name for name in names[row] if name != q.reference or not remove_reference][:50] for row, q in zip(order, queries, strict=True)
    ]
    expected = official_circo(ranked, [query.targets for query in queries], ks)
    assert found == pytest.approx(expected | {"mean": (expected["mAP@5"] + expected["R@50"]) / 2})
    assert list(found) == [*(f"R@{k}" for k in ks), *(f"mAP@{k}" for k in ks), "mean"]
    assert 1 < found["mAP@5"] < 99


def test_averages_are_unweighted_over_the_sets_and_have_what_all_sets_have():
    def evaluation(name, average, queries=1):
        return EvaluationSet(name, tuple(Query(str(i), "a", "", ("b",)) for i in range(queries)), ("a", "b"), average=average)

    scored = [
        (evaluation("original/dress", "original/avg", 9), {"R@10": 10.0, "R@50": 20.0, "only": 1.0}),
        (evaluation("alone", ""), {"R@10": 99.0}),
        (evaluation("original/shirt", "original/avg"), {"R@50": 40.0, "R@10": 40.0}),
        (evaluation("val/dress", "val/avg"), {"R@10": 5.0}),
    ]
    assert averages(iter(scored)) == {"original/avg": {"R@10": 25.0, "R@50": 30.0}, "val/avg": {"R@10": 5.0}}
    assert averages([]) == {}
