"""The vocabulary of both packages: triplets, queries, galleries and what a protocol is.

Pictures are named by strings that are unique within a data set (*picture names*). A :class:`Picture` says where its file is;
everything else refers to it by name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

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
    """

    name: str
    path: Path
    content: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Triplet:
    """A training example: reference image, relative caption, target image.

    Attributes:
        reference: picture name of the reference image.
        caption: the relative caption.
        target: picture name of the target image.
        group: hard negatives are drawn from triplets of the same group (a role, a category); empty if there are none.
    """

    reference: str
    caption: str
    target: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """An evaluation query.

    Attributes:
        id: unique within its evaluation set; ranked lists print it.
        reference: picture name of the reference image.
        caption: the relative caption.
        targets: picture names of all right answers, the best one first; at least one.
        members: picture names of the query's look-alikes for the subset metric, the reference and the first target among them;
            empty if the benchmark has no subset metric.
    """

    id: str
    reference: str
    caption: str
    targets: tuple[str, ...]
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Queries, a gallery, and the protocol that scores them.

    Attributes:
        name: as it appears in metric names: ``seen``, ``original/dress``.
        queries: in a fixed order.
        gallery: picture names, without duplicates.
        remove_reference: whether a query's own reference image is taken out of its ranking.
        recall_at: the K of ``R@K``.
        subset_recall_at: the K of ``R_subset@K``; used where queries have members.
    """

    name: str
    queries: tuple[Query, ...]
    gallery: tuple[str, ...]
    remove_reference: bool = True
    recall_at: tuple[int, ...] = (1, 5, 10, 50)
    subset_recall_at: tuple[int, ...] = field(default=(1, 2, 3))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that are equal only for the same queries, gallery and protocol: figures with different ones cannot be compared."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All records of one data set, as its data module reads them.

    Attributes:
        pictures: every picture that anything below names; batches hold positions in this tuple.
        triplets: the training examples.
        val: the evaluation sets of the validation split.
        test: the evaluation sets of the test split.
        unpaired: names of further pictures that training may look at although no triplet has them.
    """

    pictures: tuple[Picture, ...]
    triplets: tuple[Triplet, ...]
    val: tuple[EvaluationSet, ...]
    test: tuple[EvaluationSet, ...]
    unpaired: tuple[str, ...] = ()
