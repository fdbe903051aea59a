"""Where a model fails, in numbers: by caption, by what it relies on, by pictures that answer everything. Pure Python.

Recall is ``R@K`` as ``cir test`` prints it, in percent; intervals are of 95 %, after Wilson.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from dataclasses import replace
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from data_modules.records import EvaluationSet

LENGTH = "words"  # the property that every caption has
MOST_VALUES = 20  # of a property that are shown
BINS = 5  # of caption lengths
LIST = 10  # pictures of a ranked list that make a hub
RANKS = (1, 5, 10, 50)  # ends of the bins of ranks; the last one has what is beyond
Z = 1.959964  # of an interval of 95 %


class Halves(NamedTuple):
    """What one half of each query finds on its own.

    Attributes:
        ranks: of the right answer.
        first: name of the first picture.
    """

    ranks: list[int]
    first: list[str]


class Answered(NamedTuple):
    """A set of queries with what a model answered.

    Attributes:
        evaluation: the set.
        ranks: of each query's right answer, as ``R@K`` looks at it.
        lists: picture names, best first.
        known: property -> values, of each query.
        reference: by the reference image alone; None if unknown.
        caption: by the caption alone; None if unknown.
        own: by both, with the reference removed as it is from the halves; None if unknown.
    """

    evaluation: EvaluationSet
    ranks: list[int]
    lists: list[list[str]]
    known: list[Mapping[str, tuple[str, ...]]]
    reference: Halves | None = None
    caption: Halves | None = None
    own: Halves | None = None


class Slice(NamedTuple):
    """Queries that have something in common.

    Attributes:
        name: of the property: ``words``, ``kind of edit``.
        value: that they have.
        queries: how many.
        recall: R@1.
        low: lower end of its interval.
        high: upper end of its interval.
        recall_ten: R@10.
    """

    name: str
    value: str
    queries: int
    recall: float
    low: float
    high: float
    recall_ten: float


class Reliance(NamedTuple):
    """How often the first result is what one half of the query alone would have found first; in percent of the queries.

    Attributes:
        half: ``reference`` or ``caption``.
        right: how often the half's own first picture is right.
        taken: how often it is the first result.
        taken_right: how often it is the first result and right.
        by_chance: how often the first result is the half's first picture of another query, drawn at random.
    """

    half: str
    right: float
    taken: float
    taken_right: float
    by_chance: float

    @property
    def taken_wrong(self) -> float:
        """How often it is the first result and wrong: over-reliance."""
        return self.taken - self.taken_right


class Hub(NamedTuple):
    """A picture that many queries find.

    Attributes:
        name: of the picture.
        lists: how many queries have it among their first ten.
        right: for how many of these it is right.
    """

    name: str
    lists: int
    right: int


class Hubs(NamedTuple):
    """How unevenly the pictures of a gallery are found; N is how many queries have a picture among their first ten.

    Attributes:
        top: the pictures with the largest N.
        skewness: of N over the gallery; 0 if all pictures were found alike.
        share: percent of all places that the most frequent hundredth of the gallery has.
        never: percent of the gallery that no query finds.
        answers_skewness: of how often a picture is a right answer, for comparison.
    """

    top: list[Hub]
    skewness: float
    share: float
    never: float
    answers_skewness: float


class Move(NamedTuple):
    """The rank of the target by the reference alone (before) and by the query (after).

    Attributes:
        table: queries by bin of the rank before (rows) and after (columns), bins as in :data:`RANKS` and beyond.
        before: median rank before.
        after: median rank after.
        better: percent of queries whose target came nearer to the top.
        worse: percent whose target went down.
    """

    table: list[list[int]]
    before: float
    after: float
    better: float
    worse: float


def wilson(right: int, of: int) -> tuple[float, float]:
    """The interval of a share, in percent (E. B. Wilson, 1927).

    >>> [round(end, 1) for end in wilson(8, 10)]
    [49.0, 94.3]
    """
    share, more = right / of, Z * Z / of
    middle, half = share + more / 2, Z * math.sqrt(share * (1 - share) / of + more / (4 * of))
    return max(0.0, 100 * (middle - half) / (1 + more)), min(100.0, 100 * (middle + half) / (1 + more))


def recall(ranks: Sequence[int], k: int) -> float:
    """R@K in percent."""
    return 100 * sum(rank <= k for rank in ranks) / len(ranks)


def slices(answered: Answered) -> list[Slice]:
    """Recall of all queries, by caption length, and by each property's values; a query with several values counts with each."""
    found = [_slice("all", "", answered.ranks), *(_slice(LENGTH, label, of.ranks) for label, of in by_length(answered))]
    for name in dict.fromkeys(name for known in answered.known for name in known):
        places = by_value([known.get(name, ()) for known in answered.known], MOST_VALUES)
        found += [_slice(name, value, [answered.ranks[at] for at in some]) for value, some in places.items()]
    return found


def by_value(values: Sequence[Sequence[str]], most: int | None = None) -> dict[str, list[int]]:
    """The places of each value, the most frequent first; numbers in their order.

    Args:
        values: of each query.
        most: how many values are kept, the most frequent ones; None for all.

    >>> by_value([["b"], ["a", "b"], []]), list(by_value([["10"], ["9"]]))
    ({'b': [0, 1], 'a': [1]}, ['9', '10'])
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for at, some in enumerate(values):
        for value in some:
            places[value].append(at)
    kept = sorted(places, key=lambda value: (-len(places[value]), value))[:most]
    return {value: places[value] for value in (sorted(kept, key=int) if all(map(str.isdigit, kept)) else kept)}


def _slice(name: str, value: str, ranks: list[int]) -> Slice:
    return Slice(name, value, len(ranks), recall(ranks, 1), *wilson(sum(rank <= 1 for rank in ranks), len(ranks)), recall(ranks, LIST))


def length_bins(words: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Up to five bins of caption lengths of about equally many queries: label and places of each.

    >>> length_bins([1, 2, 3, 4, 5, 9])
    [('1-2', [0, 1]), ('3', [2]), ('4', [3]), ('5', [4]), ('9', [5])]
    """
    counts = sorted(Counter(words).items())
    bins: list[list[int]] = []
    seen = 0
    for length, count in counts:
        at = min(BINS - 1, int(seen * BINS / len(words)))
        if not bins or at > bins[-1][-1]:
            bins.append([length, length, at])
        bins[-1][1], bins[-1][-1] = length, at
        seen += count
    return [
        (str(low) if low == high else f"{low}-{high}", [place for place, length in enumerate(words) if low <= length <= high])
        for low, high, _ in bins
    ]


def reliances(answered: Answered, seed: int = 0) -> list[Reliance]:
    """Of both halves, where their results are known; chance is from one random exchange of the queries."""
    found = []
    for name in ("reference", "caption"):
        half: Halves | None = getattr(answered, name)
        if half is None or answered.own is None:
            continue
        own = answered.own.first
        right = [first in answers for first, answers in zip(half.first, _answers(answered), strict=True)]
        taken = [first == mine for first, mine in zip(half.first, own, strict=True)]
        others = exchanged(len(own), seed)
        found.append(
            Reliance(
                half=name,
                right=100 * fmean(right),
                taken=100 * fmean(taken),
                taken_right=100 * fmean(a and b for a, b in zip(taken, right, strict=True)),
                by_chance=100 * fmean(half.first[other] == mine for other, mine in zip(others, own, strict=True)),
            )
        )
    return found


def _answers(answered: Answered) -> list[tuple[str, ...]]:
    """Of each query, the right answers that ``R@K`` looks for."""
    return [answered.evaluation.answers(query) for query in answered.evaluation.queries]


def part(answered: Answered, places: Sequence[int]) -> Answered:
    """A part of the queries."""

    def half(of: Halves | None) -> Halves | None:
        return of and Halves([of.ranks[at] for at in places], [of.first[at] for at in places])

    return Answered(
        replace(answered.evaluation, queries=tuple(answered.evaluation.queries[at] for at in places)),
        [answered.ranks[at] for at in places],
        [answered.lists[at] for at in places],
        [answered.known[at] for at in places],
        half(answered.reference),
        half(answered.caption),
        half(answered.own),
    )


def by_length(answered: Answered) -> list[tuple[str, Answered]]:
    """The queries by caption length, with the label of each bin."""
    words = [len(query.caption.split()) for query in answered.evaluation.queries]
    return [(label, part(answered, places)) for label, places in length_bins(words)]


def exchanged(count: int, seed: int) -> list[int]:
    """Another place for each of ``count`` places: a random cycle (of one place, itself).

    >>> sorted(exchanged(5, 0)), any(at == other for at, other in enumerate(exchanged(5, 0)))
    ([0, 1, 2, 3, 4], False)
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return [other for _, other in sorted(zip(order, order[1:] + order[:1], strict=True))]


def itself(answered: Answered) -> float:
    """Percent of queries whose first result is their own reference; 0 where the protocol removes it."""
    return 100 * fmean(names[0] == query.reference for names, query in zip(answered.lists, answered.evaluation.queries, strict=True))


def moves(answered: Answered) -> Move | None:
    """Ranks before and after; None where those before are unknown."""
    if answered.reference is None or answered.own is None:
        return None
    before, after = answered.reference.ranks, answered.own.ranks
    table = [[0] * (len(RANKS) + 1) for _ in range(len(RANKS) + 1)]
    for one, other in zip(before, after, strict=True):
        table[_bin(one)][_bin(other)] += 1
    pairs = list(zip(before, after, strict=True))
    return Move(
        table, median(before), median(after), 100 * fmean(new < old for old, new in pairs), 100 * fmean(new > old for old, new in pairs)
    )


def rank_labels() -> list[str]:
    """Names of the bins of ranks.

    >>> rank_labels()
    ['1', '2-5', '6-10', '11-50', 'above 50']
    """
    starts = [1, *(end + 1 for end in RANKS)]
    inner = [str(end) if start == end else f"{start}-{end}" for start, end in zip(starts, RANKS, strict=False)]
    return [*inner, f"above {RANKS[-1]}"]


def _bin(rank: int) -> int:
    return next((at for at, end in enumerate(RANKS) if rank <= end), len(RANKS))


def hubs(answered: Answered, shown: int = 10) -> Hubs:
    """Pictures that are found for many queries."""
    gallery = answered.evaluation.gallery
    found: Counter[str] = Counter(dict.fromkeys(gallery, 0))
    right: Counter[str] = Counter()
    wanted: Counter[str] = Counter(dict.fromkeys(gallery, 0))
    for answers, names in zip(_answers(answered), answered.lists, strict=True):
        found.update(names[:LIST])
        right.update(set(names[:LIST]) & set(answers))
        wanted.update(name for name in answers if name in wanted)
    counts = sorted(found.values(), reverse=True)
    return Hubs(
        top=[Hub(name, count, right[name]) for name, count in found.most_common(shown) if count],
        skewness=skewness(counts),
        share=100 * sum(counts[: max(1, len(counts) // 100)]) / max(1, sum(counts)),
        never=100 * counts.count(0) / len(counts),
        answers_skewness=skewness(list(wanted.values())),
    )


def skewness(values: Sequence[float]) -> float:
    """Third standardised moment; 0 of equal values.

    >>> round(skewness([0, 0, 0, 1]), 4)
    1.1547
    """
    mean = fmean(values)
    variance = fmean((value - mean) ** 2 for value in values)
    return fmean((value - mean) ** 3 for value in values) / variance**1.5 if variance else 0.0


def worst(answered: Answered, count: int) -> list[int]:
    """Places of the queries whose right answers rank last."""
    return sorted(range(len(answered.ranks)), key=lambda at: -answered.ranks[at])[:count]


def best(answered: Answered, count: int) -> list[int]:
    """Places of the queries that are right at once although the reference alone ranks their answers last."""
    before = answered.reference.ranks if answered.reference else [0] * len(answered.ranks)
    return [at for at in sorted(range(len(before)), key=lambda at: -before[at]) if answered.ranks[at] == 1][:count]
