"""Choosing columns against numpy's full sort."""

import numpy as np
import pytest
import torch

from cir_lightning.retrieval.scores import best, count_at_least, sort_columns


@pytest.mark.parametrize("values", [2, 5, 10**6], ids=["two values", "ties", "hardly any ties"])
@pytest.mark.parametrize(("width", "n"), [(1, 1), (5, 1), (5, 9), (40, 10), (41, 10), (100, 1), (1003, 6), (1003, 51)])
def test_best_columns(width, n, values):
    rng = np.random.default_rng(width + n)
    scores = rng.integers(-values, values, (9, width)).astype(np.float32)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :n]
    found = best(torch.from_numpy(scores), n)
    assert found.sort(dim=1).values.tolist() == np.sort(expected, axis=1).tolist()
    assert sort_columns(torch.from_numpy(scores), found, torch.arange(width)).tolist() == expected.tolist()


def test_equal_scores_are_sorted_by_place():
    scores, place = torch.tensor([[1.0, 2.0, 1.0, 1.0]]), torch.tensor([3, 1, 0, 2])
    assert sort_columns(scores, torch.tensor([[0, 1, 2, 3]]), place).tolist() == [[1, 2, 3, 0]]


def test_counts_leave_the_scores_alone():
    scores = torch.tensor([[1.0, 2.0, 3.0], [-torch.inf, -1.0, 0.0]])
    before = scores.clone()
    assert count_at_least(scores[:, 1:], torch.tensor([[3.0, 2.0], [-1.0, 0.5]])).tolist() == [[1, 2], [2, 0]]
    assert torch.equal(scores, before)
