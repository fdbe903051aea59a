"""The vocabulary of both packages: triplets, queries, galleries and what a protocol is.

Pictures are named by strings that are unique within a data set (*picture names*). A :class:`Picture` says where its file is;
everything else refers to it by name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a data set.

    Attributes:
        name: unique within the data set; what ranked lists and submissions print.
        path: the picture file.
        content: a value that is equal for pictures with the same pixels; the in-batch loss masks such false negatives.
        title: what the picture shows in words ("woman firefighter dark skin"), where the data set knows it; empty otherwise.
        box: the part of the file that is the picture: left, top, right, bottom in pixels of the upright file, cut off at its edges and
            then made a square (:func:`data_modules.images.cut`); None for the whole file.
    """

    name: str
    path: Path
    content: str
    title: str = ""
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Triplet:
    """A training example: reference image, relative caption, target image.

    Attributes:
        reference: picture name of the reference image.
        caption: the relative caption.
        target: picture name of the target image.
        group: hard negatives are drawn from triplets of the same group (a role, a category); empty if there are none.
        wordings: what training says instead of the caption, one of them drawn anew in every epoch; empty: always the caption.
    """

    reference: str
    caption: str
    target: str
    group: str = ""
    wordings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """An evaluation query.

    Attributes:
        id: unique within its evaluation set; ranked lists print it.
        reference: picture name of the reference image.
        caption: the relative caption.
        targets: picture names of all right answers, the best one first; empty only where the answers are a test server's secret.
        members: picture names of the query's look-alikes for the subset metric, the reference and the first target among them; of a
            set with ``members_only``, its whole gallery; empty if the protocol has no use for them.
    """

    id: str
    reference: str
    caption: str
    targets: tuple[str, ...]
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """What a paper reports under the same protocol.

    Attributes:
        method: the paper's name for its method.
        figures: metric name and percent, as printed there.
        source: paper and table, or where it is re-printed.
        average: figures of the average that the set goes into, as printed, which may differ from their means in the last digit.
    """

    method: str
    figures: tuple[tuple[str, float], ...]
    source: str
    average: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Submission:
    """A file of ranked lists as a test server wants it: a JSON object of query id -> picture names, best first.

    Attributes:
        file: name of the file.
        names: how many pictures the server wants of each query.
        header: further keys and values of the object.
        integers: whether picture names are written as numbers.
        max_bytes: largest file that the server takes.
    """

    file: str
    names: int
    header: tuple[tuple[str, str], ...] = ()
    integers: bool = False
    max_bytes: int = 5_000_000


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Queries, a gallery, and the protocol that scores them: all that is known of a benchmark outside its data module.

    Attributes:
        name: as it appears in metric names: ``emoji/seen``, ``fashioniq/original/dress``.
        queries: in a fixed order.
        gallery: picture names, without duplicates.
        remove_reference: whether a query's own reference image is taken out of its ranking.
        recall_at: the K of ``R@K``.
        subset_recall_at: the K of ``R_subset@K``; used where queries have members.
        map_at: the K of ``mAP@K``, whose divisor is min(number of targets, K).
        recall_of: which targets ``R@K`` looks for: any of them, or the first alone.
        members_only: whether each query is ranked among its members alone; ``R@K`` is then of this small gallery, and there is no
            subset metric.
        mean_of: figures whose mean is reported as ``mean``; empty if the protocol has none.
        average: sets with the same ``average`` are also reported under this name, as the unweighted mean of their figures.
        protocol: the protocol in words, for the reader of a table.
        published: figures of papers under this protocol.
        submission: the file that a test server wants; None if there is no server.
        skipped_queries: queries that were left out because pictures are missing.
        skipped_pictures: gallery pictures that were left out because they are missing.
        reduced_queries: queries that lost further targets or members, as these are missing; they are easier or harder than they were.
    """

    name: str
    queries: tuple[Query, ...]
    gallery: tuple[str, ...]
    remove_reference: bool = True
    recall_at: tuple[int, ...] = (1, 5, 10, 50)
    subset_recall_at: tuple[int, ...] = (1, 2, 3)
    map_at: tuple[int, ...] = ()
    recall_of: Literal["any", "first"] = "any"
    members_only: bool = False
    mean_of: tuple[str, ...] = ()
    average: str = ""
    protocol: str = ""
    published: tuple[Published, ...] = ()
    submission: Submission | None = None
    skipped_queries: int = 0
    skipped_pictures: int = 0
    reduced_queries: int = 0

    def answers(self, query: Query) -> tuple[str, ...]:
        """The targets of a query that ``R@K`` looks for."""
        return query.targets[:1] if self.recall_of == "first" else query.targets

    @property
    def fingerprint(self) -> str:
        """16 hex digits that are equal only for the same queries, gallery and protocol: figures with different ones cannot be compared."""
        scored = {key: value for key, value in asdict(self).items() if key not in _NOT_SCORED}
        text = json.dumps(scored, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_NOT_SCORED = {"mean_of", "average", "protocol", "published", "submission", "skipped_queries", "skipped_pictures", "reduced_queries"}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All records of one data set, as its data module reads them.

    Attributes:
        pictures: every picture that anything below names; batches hold positions in this tuple.
        triplets: the training examples.
        val: the evaluation sets of the validation split.
        test: the evaluation sets of the test split; empty where its answers are secret, in which case ``cir test`` scores val.
        hidden: the test split where its answers are secret: queries without targets, to be predicted only.
        unpaired: names of further pictures that training may look at although no triplet has them.
        skipped_triplets: training examples that were left out because pictures are missing.
    """

    pictures: tuple[Picture, ...]
    triplets: tuple[Triplet, ...]
    val: tuple[EvaluationSet, ...]
    test: tuple[EvaluationSet, ...]
    hidden: tuple[EvaluationSet, ...] = ()
    unpaired: tuple[str, ...] = ()
    skipped_triplets: int = 0
