"""Where a model fails, against hand-worked tables and numpy."""

import itertools
import math

import numpy as np
import pytest

from cir_lightning.analysis import failures
from cir_lightning.analysis.failures import Answered, Halves
from data_modules.records import EvaluationSet, Query

GALLERY = tuple("abcdefgh")
SET = EvaluationSet(
    "toy",
    (
        Query("0", "a", "blue", ("b",)),
        Query("1", "a", "but red", ("c", "d")),
        Query("2", "b", "now with a hat", ("e",)),
        Query("3", "h", "a dog", ("f",)),
    ),
    GALLERY,
    recall_at=(1, 5),
)
LISTS = [["b", "c"], ["b", "d"], ["e", "a"], ["g", "f"]]
RANKS = [1, 2, 1, 2]
KNOWN = [{"kind": ("colour",)}, {"kind": ("colour", "tone")}, {"kind": ("addition",), "edits": ("10",)}, {"edits": ("9",)}]
BY_REFERENCE, BY_CAPTION = Halves([1, 60, 3, 7], ["b", "b", "a", "g"]), Halves([2, 1, 1, 1], ["c", "d", "e", "f"])
ANSWERED = Answered(SET, RANKS, LISTS, KNOWN, BY_REFERENCE, BY_CAPTION, Halves(RANKS, [names[0] for names in LISTS]))


@pytest.mark.parametrize(("right", "of"), [(0, 5), (5, 5), (3, 10), (261, 1296)])
def test_wilson_solves_its_equation(right, of):
    """Its ends are the p with (share - p)^2 = z^2 p (1 - p) / n."""
    for end in failures.wilson(right, of):
        p = end / 100
        assert (right / of - p) ** 2 == pytest.approx(failures.Z**2 * p * (1 - p) / of, abs=1e-9)


def test_slices_by_length_and_property():
    found = {(one.name, one.value): one for one in failures.slices(ANSWERED)}
    assert [(one.queries, one.recall, one.recall_ten) for one in (found["kind", "colour"], found["kind", "tone"])] == [
        (2, 50, 100),
        (1, 0, 100),
    ]
    assert found["all", ""] == failures.Slice("all", "", 4, 50, *failures.wilson(2, 4), 100)
    assert [value for name, value in found if name == "edits"] == ["9", "10"]  # by number
    assert sum(one.queries for (name, _), one in found.items() if name == "words") == 4
    assert (found["words", "1"].recall, found["words", "2"].recall, found["words", "4"].recall) == (100, 0, 100)


@pytest.mark.parametrize("seed", range(5))
def test_length_bins_hold_every_query_once(seed):
    words = np.random.default_rng(seed).integers(1, 30, 200).tolist()
    bins = failures.length_bins(words)
    assert sorted(place for _, places in bins for place in places) == list(range(200))
    assert 2 <= len(bins) <= failures.BINS
    ends = [[words[place] for place in places] for _, places in bins]
    assert all(max(one) < min(other) for one, other in itertools.pairwise(ends))


def test_reliance_counts_first_results():
    reference, caption = failures.reliances(ANSWERED)
    assert reference == failures.Reliance("reference", 25, 75, 25, reference.by_chance)  # taken by 0, 1, 3; right for 0 alone
    assert reference.taken_wrong == 50
    assert (caption.right, caption.taken, caption.taken_right) == (75, 25, 25)  # caption's firsts: c (no), d, e, f; of them e is taken
    others = failures.exchanged(4, 0)
    assert reference.by_chance == 25 * sum(BY_REFERENCE.first[o] == names[0] for o, names in zip(others, LISTS, strict=True))
    assert failures.reliances(ANSWERED._replace(caption=None)) == [reference]


def test_a_part_of_the_queries_is_what_they_would_be_alone():
    parts = failures.by_length(ANSWERED)
    assert [label for label, _ in parts] == ["1", "2", "4"]
    two = parts[1][1]
    assert [query.id for query in two.evaluation.queries] == ["1", "3"]
    assert (two.ranks, two.lists, two.known) == ([2, 2], [LISTS[1], LISTS[3]], [KNOWN[1], KNOWN[3]])
    assert (two.reference, two.caption) == (Halves([60, 7], ["b", "g"]), Halves([1, 1], ["d", "f"]))
    assert failures.reliances(two)[0].taken_wrong == 100
    assert failures.part(ANSWERED._replace(caption=None), [0]).caption is None


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_an_exchange_leaves_nothing_in_its_place(count):
    others = failures.exchanged(count, 3)
    assert sorted(others) == list(range(count))
    assert all(at != other for at, other in enumerate(others))


def test_moves():
    move = failures.moves(ANSWERED)
    assert (move.before, move.after, move.better, move.worse) == (5, 1.5, 75, 0)
    expected = np.zeros((5, 5), int)
    for before, after in ((0, 0), (4, 1), (1, 0), (2, 1)):
        expected[before, after] += 1
    assert move.table == expected.tolist()
    assert failures.moves(ANSWERED._replace(reference=None)) is None


def test_hubs_against_numpy():
    draw = np.random.default_rng(1)
    gallery = tuple(f"p{at:03d}" for at in range(300))
    queries = tuple(Query(str(at), "p000", "x", (gallery[int(draw.integers(300))],)) for at in range(80))
    lists = [[gallery[int(at)] for at in draw.permutation(300)[:20]] for _ in queries]
    answered = Answered(EvaluationSet("many", queries, gallery), [1] * 80, lists, [{}] * 80)
    found = failures.hubs(answered)
    counts = np.array([sum(name in names[:10] for names in lists) for name in gallery])
    assert found.skewness == pytest.approx(((counts - counts.mean()) ** 3).mean() / counts.std() ** 3)
    assert found.never == pytest.approx(100 * (counts == 0).mean())
    assert found.share == pytest.approx(100 * np.sort(counts)[::-1][:3].sum() / 800)
    assert [hub.lists for hub in found.top] == np.sort(counts)[::-1][:10].tolist()
    assert all(
        hub.right == sum(hub.name in names[:10] and hub.name in q.targets for q, names in zip(queries, lists, strict=True))
        for hub in found.top
    )
    assert math.isfinite(found.answers_skewness)


def test_where_recall_is_of_the_first_answer_the_others_are_not_right():
    queries = (Query("0", "a", "x", ("b", "c")), Query("1", "b", "x", ("a", "c")))
    answered = Answered(EvaluationSet("one", queries, ("a", "b", "c"), recall_of="first"), [2, 2], [["c"], ["c"]], [{}] * 2)
    assert failures.hubs(answered).top == [failures.Hub("c", 2, 0)]
    either = answered._replace(evaluation=EvaluationSet("one", queries, ("a", "b", "c")))
    assert failures.hubs(either).top == [failures.Hub("c", 2, 2)]


def test_worst_and_best_queries():
    assert failures.worst(ANSWERED, 2) == [1, 3]
    assert failures.best(ANSWERED, 8) == [2, 0]  # of those that are right, the one that the reference alone finds last comes first
    assert failures.best(ANSWERED._replace(ranks=[2, 2, 2, 2]), 8) == []


def test_the_reference_itself_as_first_result():
    assert failures.itself(ANSWERED) == 0
    assert failures.itself(ANSWERED._replace(lists=[["a"], ["b"], ["b"], ["g"]])) == 50
