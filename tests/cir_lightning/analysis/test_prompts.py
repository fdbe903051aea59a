"""What prompts are used for, against numpy and by hand."""

import numpy as np
import pytest
import torch

from cir_lightning.analysis import prompts


def test_usage_counts_choices():
    used = prompts.usage(torch.tensor([[0, 1], [0, 2], [1, 0], [0, 1]]), 5)
    assert used.counts.tolist() == [4, 3, 1, 0, 0]
    assert used.first.tolist() == [3, 1, 0, 0, 0]
    assert used.dead == [3, 4]
    share = np.array([4, 3, 1]) / 8
    assert used.entropy == pytest.approx(-(share * np.log(share)).sum() / np.log(5))
    assert prompts.usage(torch.arange(6)[:, None], 6).entropy == pytest.approx(1)
    assert prompts.usage(torch.zeros(3, 1, dtype=torch.int64), 1).entropy == 1


def test_mutual_information_against_entropies():
    draw = np.random.default_rng(0)
    ones = draw.integers(0, 4, 500)
    others = (ones + draw.integers(0, 2, 500)) % 4

    def entropy(*columns):
        _, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
        share = counts / counts.sum()
        return -(share * np.log2(share)).sum()

    expected = entropy(ones) + entropy(others) - entropy(ones, others)
    assert prompts.mutual_information(ones.tolist(), others.tolist()) == pytest.approx(expected)


def test_information_is_told_from_chance():
    draw = np.random.default_rng(0)
    roles = [f"role {at}" for at in draw.integers(0, 30, 400)]
    known = prompts.information("role", list(range(400)), [int(role.split()[1]) // 3 for role in roles], roles)
    assert (known.values, known.p) == (30, pytest.approx(1 / 201))
    assert known.bits > 2.5 > known.largest >= known.shuffled > 0
    nothing = prompts.information("role", list(range(400)), draw.integers(0, 10, 400).tolist(), roles)
    assert nothing.bits < nothing.largest * 1.05
    assert nothing.p > 0.01


def test_references_that_several_queries_share_are_no_evidence():
    """Prompts dealt to 60 references at random, each of which has 8 queries of its own role."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(10):
        own = draw.integers(0, 6, 60).tolist()
        references = [reference for reference in range(60) for _ in range(8)]
        roles = [f"role {reference % 12}" for reference in references]
        found.append(prompts.information("role", references, [own[reference] for reference in references], roles).p)
    assert sum(p < 0.05 for p in found) <= 2


def test_nearest_words_and_their_control():
    words = torch.eye(4, 6)
    near = prompts.nearest_words(torch.tensor([[0.0, 3.0, 1.0, 0, 0, 0]]), words, ["ape", "bee", "cat", "dog"], 2)
    assert [word.text for word in near[0]] == ["bee", "cat"]
    assert [word.cosine for word in near[0]] == pytest.approx([3 / 10**0.5, 1 / 10**0.5])
    mean, high = prompts.random_nearest(torch.randn(500, 64, generator=torch.Generator().manual_seed(1)))
    assert 0.25 < mean < high < 0.6  # of 500 random directions in 64 dimensions


def test_the_plane_keeps_what_differs_most():
    draw = torch.Generator().manual_seed(0)
    flat = torch.randn(50, 2, generator=draw) @ torch.randn(2, 8, generator=draw)
    places, others, share = prompts.plane(flat, flat[:3])
    assert share == pytest.approx(1)
    assert torch.allclose(torch.cdist(places, places), torch.cdist(flat.double(), flat.double()), atol=1e-4)
    assert torch.allclose(others, places[:3])


def test_typical_values_stand_out_from_their_share():
    ones, values = [0, 0, 0, 0, 1, 1, 1, 1], ["x", "x", "x", "y", "y", "y", "y", "x"]
    assert prompts.most_typical(ones, values, 0) == [("x", 3, pytest.approx(3 / (4 * 4 / 8)))]  # y is rarer than by chance
    assert prompts.most_typical(ones, values, 7) == []
