"""The ranking engine against a full argsort over names, and the traps of ties, references and subsets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cir_lightning.retrieval import ranking as engine
from cir_lightning.retrieval.ranking import rank, recalls
from data_modules.errors import UserError
from data_modules.records import EvaluationSet, Query


def reference_ranking(queries, gallery, evaluation, top):
    """The slow way: sort all names per query, wrong answers first among equals, then look for the right ones."""
    names = np.array(evaluation.gallery)
    scores = (queries.double().numpy() @ gallery.double().numpy().T).astype(np.float32)
    ranks, subset_ranks, lists = [], [], []
    for query, row in zip(evaluation.queries, scores, strict=True):
        removed = {query.reference} if evaluation.remove_reference else set()
        right = set(query.targets)

        def rank_among(pool, answers, row=row, right=right):
            wrong_first = sorted(pool, key=lambda name: (-row[names == name][0], name in right))
            others = [name for name in wrong_first if name not in right or name == answers[0]]
            return 1 + others.index(answers[0])

        pool = [name for name in names if name not in removed]
        reachable = [name for name in pool if name in right]
        best = sorted(reachable, key=lambda name: -row[names == name][0])[:1]
        ranks.append(rank_among(pool, best) if best else len(names) + 1)
        if query.members:
            subset_ranks.append(rank_among([name for name in query.members if name != query.reference], [query.targets[0]]))
        order = np.lexsort((np.arange(len(names)), -row))
        lists.append([int(i) for i in order if names[i] not in removed][: min(top, len(names) - len(removed))])
    return ranks, subset_ranks, lists


def random_set(rng, *, queries, gallery, remove_reference, subset=False, targets=1):
    names = tuple(f"p{i}" for i in range(gallery))
    made = []
    for i in range(queries):
        reference, *others = rng.permutation(names)[: 8 + targets].tolist()
        right = tuple(others[:targets])
        made.append(Query(f"q{i}", reference, "", right, (others[-1], reference, *others[:5]) if subset else ()))
    return EvaluationSet("random", tuple(made), names, remove_reference, recall_at=(1, 5))


def vectors(kind, rng, count, width=4):
    if kind == "tied":  # small whole numbers: many exactly equal scores
        return torch.from_numpy(rng.integers(-1, 2, (count, width))).float()
    if kind == "equal":
        return torch.ones(count, width)
    made = torch.from_numpy(rng.standard_normal((count, width))).float()
    return torch.nn.functional.normalize(made, dim=1)


@pytest.mark.parametrize("kind", ["random", "tied", "equal"])
@pytest.mark.parametrize(
    ("remove_reference", "subset", "targets"), [(True, True, 1), (False, True, 3), (True, False, 4), (False, False, 1)]
)
def test_agrees_with_a_full_sort(kind, remove_reference, subset, targets):
    rng = np.random.default_rng(7)
    evaluation = random_set(rng, queries=41, gallery=29, remove_reference=remove_reference, subset=subset, targets=targets)
    queries, gallery = vectors(kind, rng, 41), vectors(kind, rng, 29)
    ranks, subset_ranks, lists = reference_ranking(queries, gallery, evaluation, top=10)

    result = rank(queries, gallery, evaluation, top=10, chunk=8)

    assert result.ranks.tolist() == ranks
    assert (result.subset_ranks.tolist() if subset else result.subset_ranks) == (subset_ranks if subset else None)
    assert result.top.tolist() == lists
    assert result.unreachable == 0
    torch.testing.assert_close(result.scores, (queries @ gallery.T).gather(1, result.top))


@pytest.mark.parametrize("chunk", [1, 7, 41, 512])
def test_chunks_and_blocks_do_not_matter(chunk, monkeypatch):
    rng = np.random.default_rng(1)
    evaluation = random_set(rng, queries=41, gallery=29, remove_reference=True, subset=True)
    queries, gallery = vectors("random", rng, 41, 64), vectors("random", rng, 29, 64)
    whole = rank(queries, gallery, evaluation)
    monkeypatch.setattr(engine, "_BLOCK", 5)
    result = rank(queries, gallery, evaluation, chunk=chunk)
    for name in ("ranks", "subset_ranks", "top", "scores"):
        assert torch.equal(getattr(result, name), getattr(whole, name)), name


TABLE = EvaluationSet(
    "hand",
    (
        Query("one", "a", "", ("c",), ("a", "b", "c", "e")),
        Query("two", "b", "", ("a", "e"), ("b", "a", "d", "e")),
        Query("three", "e", "", ("b",), ("c", "b", "d", "e")),
    ),
    ("a", "b", "c", "d", "e"),
    recall_at=(1, 2, 4),
    subset_recall_at=(1, 2),
)
SCORES = torch.tensor(
    [
        [9.0, 4.0, 3.0, 3.0, 1.0],  # a removed; b ahead, d tied: c is third, second among b, c, e
        [2.0, 9.0, 2.0, 1.0, 5.0],  # b removed; e is a right answer and first; a is first among a, d (e never counts)
        [-1.0, -2.0, -3.0, -4.0, -0.5],  # all negative; e removed; b is second, first among c, b, d
    ]
)


def test_hand_worked_table():
    result = rank(SCORES, torch.eye(5), TABLE)
    assert result.ranks.tolist() == [3, 1, 2]
    assert result.subset_ranks.tolist() == [2, 1, 1]
    assert result.top.tolist() == [[1, 2, 3, 4], [4, 0, 2, 3], [0, 1, 2, 3]]
    assert result.scores.dtype == torch.float32
    figures = recalls(result, TABLE)
    assert figures == pytest.approx({"R@1": 100 / 3, "R@2": 200 / 3, "R@4": 100.0, "R_subset@1": 200 / 3, "R_subset@2": 100.0})
    assert list(figures) == ["R@1", "R@2", "R@4", "R_subset@1", "R_subset@2"]


def test_reference_kept_counts_against_the_model_except_in_the_subset():
    result = rank(SCORES, torch.eye(5), replace(TABLE, remove_reference=False))
    assert result.ranks.tolist() == [4, 2, 3]
    assert result.subset_ranks.tolist() == [2, 1, 1]
    assert result.top[:, 0].tolist() == [0, 1, 4]
    assert result.top.shape == (3, 5)


def test_a_target_that_wins_only_with_a_negative_score_is_a_hit():
    evaluation = EvaluationSet("negative", (Query("q", "r", "", ("b",)),), ("a", "b"), recall_at=(1,))
    assert recalls(rank(-torch.tensor([[0.9, 0.1]]), torch.eye(2), evaluation), evaluation) == {"R@1": 100.0}


def test_copies_of_the_target_rank_before_it_wherever_they_lie():
    """In float32 products a vector's score depends on its place in the matrix; that would break these ties at random."""
    generator = torch.Generator().manual_seed(0)
    gallery = torch.nn.functional.normalize(torch.randn(1003, 384, generator=generator), dim=1)
    copies = torch.tensor([0, 1, 17, 500, 1002])
    gallery[copies] = gallery[333].clone()
    names = tuple(map(str, range(1003)))
    evaluation = EvaluationSet("copies", tuple(Query(f"q{i}", "none", "", ("333",)) for i in range(9)), names)
    queries = gallery[333] + 0.01 * torch.randn(9, 384, generator=generator)
    result = rank(queries, gallery, evaluation, chunk=4, top=6)
    assert result.ranks.tolist() == [6] * 9
    assert result.top.tolist() == [[0, 1, 17, 333, 500, 1002]] * 9


def test_a_contested_last_place_goes_to_the_first_picture():
    evaluation = EvaluationSet("tied", (Query("q", "none", "", ("p0",)),), tuple(f"p{i}" for i in range(9)), recall_at=(1,))
    result = rank(torch.ones(1, 1), torch.tensor([[1.0], [0], [1], [2], [1], [1], [0], [2], [1]]), evaluation, top=4)
    assert result.top.tolist() == [[3, 7, 0, 2]]
    assert result.ranks.tolist() == [7]


def test_autocast_and_half_precision_inputs_do_not_coarsen_scores():
    rng = np.random.default_rng(3)
    evaluation = random_set(rng, queries=20, gallery=29, remove_reference=True)
    queries, gallery = vectors("random", rng, 20, 64).bfloat16(), vectors("random", rng, 29, 64).bfloat16()
    expected = rank(queries.float(), gallery.float(), evaluation)
    with torch.autocast("cpu", torch.bfloat16):
        result = rank(queries.requires_grad_(), gallery, evaluation)
    assert torch.equal(result.scores, expected.scores)
    assert not result.scores.requires_grad


def test_gallery_of_one():
    kept = EvaluationSet("one", (Query("q", "a", "", ("a",)),), ("a",), remove_reference=False, recall_at=(1,))
    result = rank(torch.ones(1, 2), torch.ones(1, 2), kept)
    assert (result.ranks.tolist(), result.top.tolist()) == ([1], [[0]])
    removed = replace(kept, remove_reference=True, recall_at=())
    result = rank(torch.ones(1, 2), torch.ones(1, 2), removed)
    assert (result.ranks.tolist(), result.top.tolist(), result.unreachable) == ([2], [[]], 1)


def test_unreachable_queries_are_counted_and_miss():
    queries = (
        Query("reference is the target", "a", "", ("a",)),
        Query("no such picture", "a", "", ("nowhere",)),
        Query("one of two is there", "a", "", ("nowhere", "b")),
        Query("reference elsewhere", "nowhere", "", ("b",)),
    )
    evaluation = EvaluationSet("gaps", queries, ("a", "b", "c"), recall_at=(1, 2))
    result = rank(torch.tensor([[3.0, 2.0, 1.0]]).expand(4, 3), torch.eye(3), evaluation)
    assert result.ranks.tolist() == [4, 4, 1, 2]
    assert result.unreachable == 2
    assert recalls(result, evaluation) == {"R@1": 25.0, "R@2": 50.0}
    assert rank(torch.ones(4, 3), torch.eye(3), replace(evaluation, remove_reference=False)).unreachable == 1


def test_subsets_of_different_sizes():
    queries = (Query("q0", "a", "", ("b",), ("a", "b", "c", "d")), Query("q1", "a", "", ("d",), ("d", "a", "b")))
    evaluation = EvaluationSet("mixed", queries, ("a", "b", "c", "d"), recall_at=(1,), subset_recall_at=(1, 2))
    result = rank(torch.tensor([[4.0, 1.0, 2.0, 3.0], [4.0, 3.0, 3.0, 2.0]]), torch.eye(4), evaluation)
    assert result.subset_ranks.tolist() == [3, 2]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_named(broken):
    bad = SCORES.clone()
    bad[1, 3] = bad[2, 0] = broken
    with pytest.raises(UserError, match=r"'hand': the vector of query 'two' has NaN or inf \(2 of 3 such vectors\); train with"):
        rank(bad, torch.eye(5), TABLE)
    gallery = torch.eye(5)
    gallery[2, 2] = broken
    with pytest.raises(UserError, match=r"gallery picture 'c' has NaN or inf \(1 of 5"):
        rank(SCORES, gallery, TABLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recall_at": (1, 5)}, r"'hand': R@5 of a gallery of 4 pictures without the reference; set recall_at to 4 at most"),
        ({"recall_at": (6,), "remove_reference": False}, r"R@6 of a gallery of 5 pictures; set recall_at to 5"),
        ({"subset_recall_at": (1, 4)}, r"query 'one': R_subset@4 of 3 members; set subset_recall_at to 3 at most"),
    ],
)
def test_k_beyond_the_candidates(change, message):
    with pytest.raises(UserError, match=message):
        rank(SCORES, torch.eye(5), replace(TABLE, **change))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("q", "a", "", ("b",)), r"query 'q': no subset members, but other queries have some; give every query"),
        (Query("q", "a", "", ("b",), ("a",)), r"query 'q': no subset members"),
        (Query("q", "a", "", ("b",), ("a", "b", "x", "c")), r"query 'q': subset member 'x' is not in the gallery; add it"),
        (Query("q", "a", "", ("b",), ("a", "c", "d", "e")), r"query 'q': the target 'b' is not among the subset members"),
        (Query("q", "a", "", ("a",), ("a", "c", "d", "e")), r"query 'q': the target 'a' is not among the subset members other than"),
    ],
)
def test_incomplete_subsets(query, message):
    evaluation = replace(TABLE, queries=(*TABLE.queries[:2], query))
    with pytest.raises(UserError, match=message):
        rank(SCORES, torch.eye(5), evaluation)


def test_vectors_of_another_set():
    with pytest.raises(ValueError, match="'hand' has 3 queries and 5 gallery pictures; got 3 and 4 vectors"):
        rank(SCORES, torch.eye(5)[:4], TABLE)
    with pytest.raises(UserError, match="'hand' has no queries; check its annotation file"):
        rank(SCORES[:0], torch.eye(5), replace(TABLE, queries=()))
