"""The ranking engine against a full sort of names, and the traps of ties, references, members and subsets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cir_lightning.retrieval import ranking as engine
from cir_lightning.retrieval import scores as operations
from cir_lightning.retrieval.figures import score
from cir_lightning.retrieval.ranking import rank, rank_all
from data_modules.errors import UserError
from data_modules.records import EvaluationSet, Query

TENSORS = ("ranks", "answer_ranks", "subset_ranks", "top", "scores")


def reference_ranking(queries, gallery, evaluation, top):
    """The slow way: sort all names per query, wrong answers first among equals, then look for the right ones."""
    scores = (queries.double().numpy() @ gallery.double().numpy().T).astype(np.float32)
    ranks, answer_ranks, subset_ranks, lists = [], [], [], []
    longest = max(1, *(len(query.targets) for query in evaluation.queries))
    for query, row in zip(evaluation.queries, scores, strict=True):
        value = dict(zip(evaluation.gallery, row.tolist(), strict=True))

        def rank_among(pool, answer, *, alone, query=query, value=value):
            if answer not in pool:
                return len(evaluation.gallery) + 1
            others = [name for name in pool if name == answer or not alone or name not in query.targets]
            late = {
                name: len(query.targets) - i for i, name in enumerate(query.targets)
            }  # the wrong ones come first, the first target last
            return 1 + sorted(others, key=lambda name: (-value[name], late.get(name, 0))).index(answer)

        pool = query.members if evaluation.members_only else evaluation.gallery
        pool = [name for name in evaluation.gallery if name in pool and not (evaluation.remove_reference and name == query.reference)]
        alone = [rank_among(pool, name, alone=True) for name in query.targets]
        ranks.append(min(alone, default=len(evaluation.gallery) + 1))
        answers = [rank_among(pool, name, alone=False) for name in query.targets]
        answer_ranks.append(answers + [len(evaluation.gallery) + 1] * (longest - len(answers)))
        if query.members and not evaluation.members_only:
            others = [name for name in query.members if name != query.reference]
            subset_ranks.append(rank_among(others, query.targets[0], alone=True))
        lists.append([evaluation.gallery.index(name) for name in sorted(pool, key=lambda name, value=value: -value[name])])
    length = min(top, *map(len, lists))
    return ranks, answer_ranks, subset_ranks or None, [names[:length] for names in lists]


def assert_is_reference(result, queries, gallery, evaluation, top):
    ranks, answer_ranks, subset_ranks, lists = reference_ranking(queries, gallery, evaluation, top)
    assert result.ranks.tolist() == ranks
    assert result.answer_ranks.tolist() == answer_ranks
    assert (None if result.subset_ranks is None else result.subset_ranks.tolist()) == subset_ranks
    assert result.top.tolist() == lists
    assert {getattr(result, name).dtype for name in ("ranks", "answer_ranks", "top")} == {torch.int64}
    assert result.scores.dtype == torch.float32
    exact = (queries.double() @ gallery.double().T).gather(1, result.top)
    torch.testing.assert_close(result.scores, exact.float(), rtol=0, atol=1e-7)


def random_set(rng, *, queries, gallery, remove_reference, members=False, targets=1, members_only=False):
    names = tuple(f"p{i}" for i in range(gallery))
    made = []
    for i in range(queries):
        reference, *others = rng.permutation(names)[: 8 + targets].tolist()
        right = tuple(others[: rng.integers(1, targets + 1)])
        look_alikes = (others[-1], reference, *others[: 5 + i % 2]) if members or members_only else ()
        made.append(Query(f"q{i}", reference, "", right, look_alikes))
    return EvaluationSet("random", tuple(made), names, remove_reference, recall_at=(1, 5), members_only=members_only)


def vectors(kind, rng, count, width=4):
    if kind == "tied":  # small whole numbers: many exactly equal scores
        return torch.from_numpy(rng.integers(-1, 2, (count, width))).float()
    if kind == "equal":
        return torch.ones(count, width)
    made = torch.from_numpy(rng.standard_normal((count, width))).float()
    return torch.nn.functional.normalize(made, dim=1)


@pytest.mark.parametrize("kind", ["random", "tied", "equal"])
@pytest.mark.parametrize("remove_reference", [True, False])
@pytest.mark.parametrize("targets", [1, 4])
@pytest.mark.parametrize("members", [{}, {"members": True}, {"members_only": True}], ids=["gallery", "subset", "members only"])
def test_agrees_with_a_full_sort(kind, remove_reference, targets, members):
    rng = np.random.default_rng(7)
    evaluation = random_set(rng, queries=41, gallery=29, remove_reference=remove_reference, targets=targets, **members)
    queries, gallery = vectors(kind, rng, 41), vectors(kind, rng, 29)
    result = rank(queries, gallery, evaluation, top=10, memory=8 * engine.BYTES * 30)
    assert_is_reference(result, queries, gallery, evaluation, top=10)
    assert result.unreachable == 0


@pytest.mark.parametrize("kind", ["random", "tied", "equal"])
@pytest.mark.parametrize("top", [1, 7, 400])
def test_a_long_gallery_agrees_with_a_full_sort(kind, top):
    rng = np.random.default_rng(8)
    evaluation = random_set(rng, queries=13, gallery=401, remove_reference=True, targets=2)
    queries, gallery = vectors(kind, rng, 13), vectors(kind, rng, 401)
    assert_is_reference(rank(queries, gallery, evaluation, top=top), queries, gallery, evaluation, top)


@pytest.mark.parametrize("rows", [1, 7, 41])
def test_chunks_and_blocks_do_not_matter(rows, monkeypatch):
    rng = np.random.default_rng(1)
    evaluation = random_set(rng, queries=41, gallery=29, remove_reference=True, members=True, targets=3)
    queries, gallery = vectors("random", rng, 41, 64), vectors("random", rng, 29, 64)
    whole = rank(queries, gallery, evaluation)
    seen = []
    products = engine.inner_products
    monkeypatch.setattr(engine, "inner_products", lambda part, *rest, out: seen.append(len(part)) or products(part, *rest, out=out))
    monkeypatch.setattr(operations, "BLOCK", 5)
    result = rank(queries, gallery, evaluation, memory=rows * engine.BYTES * 30)
    assert max(seen) == rows
    for name in TENSORS:
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
    assert result.answer_ranks.tolist() == [[3, 6], [3, 1], [2, 6]]  # a is tied with c, which is wrong, and e is ahead
    assert result.subset_ranks.tolist() == [2, 1, 1]
    assert result.top.tolist() == [[1, 2, 3, 4], [4, 0, 2, 3], [0, 1, 2, 3]]
    assert result.scores.dtype == torch.float32
    figures = score(result, TABLE)
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
    assert score(rank(-torch.tensor([[0.9, 0.1]]), torch.eye(2), evaluation), evaluation) == {"R@1": 100.0}


def test_copies_of_the_target_rank_before_it_wherever_they_lie():
    """In float32 products a vector's score depends on its place in the matrix; that would break these ties at random."""
    generator = torch.Generator().manual_seed(0)
    gallery = torch.nn.functional.normalize(torch.randn(1003, 384, generator=generator), dim=1)
    copies = torch.tensor([0, 1, 17, 500, 1002])
    gallery[copies] = gallery[333].clone()
    names = tuple(map(str, range(1003)))
    evaluation = EvaluationSet("copies", tuple(Query(f"q{i}", "none", "", ("333",)) for i in range(9)), names)
    queries = gallery[333] + 0.01 * torch.randn(9, 384, generator=generator)
    result = rank(queries, gallery, evaluation, memory=4 * engine.BYTES * 1004, top=6)
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
    assert score(result, evaluation) == {"R@1": 25.0, "R@2": 50.0}
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
    with pytest.raises(UserError, match=r"'hand', query 'two': its vector has NaN or inf \(2 of 3 such vectors\); train with"):
        rank(bad, torch.eye(5), TABLE)
    gallery = torch.eye(5)
    gallery[2, 2] = broken
    with pytest.raises(UserError, match=r"gallery picture 'c': its vector has NaN or inf \(1 of 5"):
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


WHY = "(other queries have some|it is to be ranked among them alone)"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("q", "a", "", ("b",)), rf"query 'q': no members besides the reference, but {WHY}; give every query its members"),
        (Query("q", "a", "", ("b",), ("a",)), rf"query 'q': no members besides the reference, but {WHY}"),
        (Query("q", "a", "", ("b",), ("a", "b", "x", "c")), r"query 'q': member 'x' is not in the gallery; add it there or"),
        (Query("q", "a", "", ("b",), ("a", "c", "d", "e")), r"query 'q': the target 'b' is not among the members besides the reference"),
        (Query("q", "a", "", ("a",), ("a", "c", "d", "e")), r"query 'q': the target 'a' is not among the members besides the reference"),
    ],
)
def test_incomplete_members(query, message):
    evaluation = replace(TABLE, queries=(*TABLE.queries[:2], query))
    for members_only in (False, True):
        with pytest.raises(UserError, match=message):
            rank(SCORES, torch.eye(5), replace(evaluation, members_only=members_only, recall_at=(1,)))


def test_members_only_hand_worked_table():
    evaluation = replace(TABLE, members_only=True, recall_at=(1, 2, 3))
    result = rank(SCORES, torch.eye(5), evaluation)
    assert result.ranks.tolist() == [2, 1, 1]  # of b c e: b ahead; of a d e: e is right; of b c d: b
    assert result.answer_ranks.tolist() == [[2, 6], [2, 1], [1, 6]]
    assert result.subset_ranks is None
    assert result.top.tolist() == [[1, 2, 4], [4, 0, 3], [1, 2, 3]]
    assert result.scores.tolist() == [[4, 3, 1], [5, 2, 1], [-2, -3, -4]]
    kept = rank(SCORES, torch.eye(5), replace(evaluation, remove_reference=False))
    assert (kept.ranks.tolist(), kept.top.tolist()) == ([3, 2, 2], [[0, 1, 2, 4], [1, 4, 0, 3], [4, 1, 2, 3]])


def test_members_only_lists_are_as_long_as_the_fewest_members_allow():
    few = replace(TABLE.queries[0], members=("a", "c", "e"))
    evaluation = replace(TABLE, queries=(few, *TABLE.queries[1:]), members_only=True, recall_at=(1, 2))
    assert rank(SCORES, torch.eye(5), evaluation).top.tolist() == [[2, 4], [4, 0], [1, 2]]
    with pytest.raises(UserError, match=r"'hand': R@3 of a gallery of 2 pictures without the reference; set recall_at to 2 at most"):
        rank(SCORES, torch.eye(5), replace(evaluation, recall_at=(3,)))


@pytest.mark.parametrize("members_only", [False, True])
def test_hidden_answers(members_only):
    """A test server's queries: lists as ever, no ranks, nothing that counts as out of reach."""
    evaluation = replace(TABLE, members_only=members_only, recall_at=(1,))
    hidden = replace(evaluation, queries=tuple(replace(query, targets=()) for query in TABLE.queries))
    result, known = rank(SCORES, torch.eye(5), hidden), rank(SCORES, torch.eye(5), evaluation)
    assert torch.equal(result.top, known.top)
    assert torch.equal(result.scores, known.scores)
    assert (result.ranks.tolist(), result.answer_ranks.tolist()) == ([6, 6, 6], [[6], [6], [6]])
    assert (result.subset_ranks is None) == members_only
    assert result.unreachable == 0


def test_equal_answers_are_ranked_from_the_last_listed_to_the_first():
    evaluation = EvaluationSet("tied", (Query("q", "r", "", ("d", "x", "b", "a")),), tuple("abcd"), recall_at=(1,))
    result = rank(torch.ones(1, 1), torch.tensor([[3.0], [2.0], [2.0], [2.0]]), evaluation)
    assert result.answer_ranks.tolist() == [[4, 5, 3, 1]]  # a first; then c, which is wrong, b, d
    assert result.ranks.tolist() == [1]


def test_no_lists():
    result, known = rank(SCORES, torch.eye(5), TABLE, top=0), rank(SCORES, torch.eye(5), TABLE)
    assert result.top.shape == result.scores.shape == (3, 0)
    assert all(torch.equal(getattr(result, name), getattr(known, name)) for name in TENSORS[:3])


def protocols(rng, targets=1):
    """As Fashion-IQ has them: the whole gallery with and without the reference, and a smaller one; and each query among its members.

    Queries of the last two have other ids; they have members, which give the third a subset metric.
    """
    whole = random_set(rng, queries=31, gallery=40, remove_reference=False, targets=targets)
    used = {name for query in whole.queries for name in (query.reference, *query.targets)}
    small = tuple(name for name in whole.gallery if name in used or name < "p2")[::-1]
    asked = tuple(replace(query, id=f"v{query.id}", members=(query.reference, *query.targets)) for query in whole.queries)
    without = replace(whole, name="without", remove_reference=True)
    val = EvaluationSet("val", asked, small, recall_at=(1,), subset_recall_at=(1,))
    return whole, without, val, replace(val, name="members", gallery=whole.gallery, members_only=True)


@pytest.mark.parametrize("kind", ["random", "tied", "equal"])
def test_several_protocols_share_their_scores(kind, monkeypatch):
    rng = np.random.default_rng(3)
    sets = protocols(rng, targets=2)
    other = random_set(rng, queries=9, gallery=12, remove_reference=True)
    other = replace(other, queries=tuple(replace(query, caption="other") for query in other.queries))
    names = tuple(rng.permutation([*sets[0].gallery, "in no gallery"]).tolist())
    table, gallery = vectors(kind, rng, 40), vectors(kind, rng, 41)
    shuffled = torch.from_numpy(rng.permutation(40))
    rows = [shuffled[:31], shuffled[31:], *[shuffled[:31]] * 3]
    sets = [sets[0], other, *sets[1:]]
    asked = []
    products = engine.inner_products
    monkeypatch.setattr(engine, "inner_products", lambda part, *rest, out: asked.append(len(part)) or products(part, *rest, out=out))

    results = rank_all(table, gallery, sets, rows=rows, names=names, top=8)

    assert asked == [31, 9]
    for evaluation, result, mine in zip(sets, results, rows, strict=True):
        in_table_order = replace(evaluation, gallery=tuple(name for name in names if name in evaluation.gallery))
        place = [names.index(name) for name in in_table_order.gallery]
        own = torch.tensor([evaluation.gallery.index(name) for name in in_table_order.gallery])
        ranks, answer_ranks, subset_ranks, lists = reference_ranking(table[mine], gallery[place], in_table_order, 8)
        assert result.ranks.tolist() == ranks, evaluation.name
        assert result.answer_ranks.tolist() == answer_ranks
        assert (None if result.subset_ranks is None else result.subset_ranks.tolist()) == subset_ranks
        assert result.top.tolist() == own[torch.tensor(lists)].tolist()
        alone = rank(table[mine], gallery[place], in_table_order, top=8)
        assert torch.equal(result.scores, alone.scores)


def test_vectors_of_another_set():
    with pytest.raises(ValueError, match="'hand' has 3 queries and 5 gallery pictures; got 3 and 4 vectors"):
        rank(SCORES, torch.eye(5)[:4], TABLE)
    with pytest.raises(UserError, match="'hand' has no queries; check its annotation file"):
        rank(SCORES[:0], torch.eye(5), replace(TABLE, queries=()))
