"""What the protocols of evaluation sets with the same queries mean in columns of the score matrix that these sets share.

Shapes: Nq queries, P pictures of the embedding table, U of them in any of the galleries, G in the gallery of one set, T most right answers
of a query (at least 1), M most members of a query (at least 1). Column U stands for "not in the gallery" and always scores ``-inf``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from data_modules.records import EvaluationSet, Query


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """A gallery in columns.

    Attributes:
        at: picture name -> gallery index.
        columns: (G + 1,) int64, the column of each picture; U at the end.
        index: (U + 1,) int64, the gallery index of each column; G for columns of other pictures.
        parts: first column and end of each slice that the gallery consists of.
    """

    at: dict[str, int]
    columns: Tensor
    index: Tensor
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One evaluation set in columns.

    Attributes:
        evaluation: the set.
        gallery: its gallery.
        right: (Nq, T) int64, columns of the right answers as listed; U for those that are not ranked.
        removed: (Nq, 1) int64, columns of the references that are taken out of the gallery's slices; U where none is.
        members: (Nq, M) int64, columns: with ``members_only`` of the pictures to rank, otherwise of the wrong pictures among the members
            other than the reference; U beyond them.
        has_subset: whether there is a subset metric.
        length: n, of the ranked lists.
    """

    evaluation: EvaluationSet
    gallery: Gallery
    right: Tensor
    removed: Tensor
    members: Tensor
    has_subset: bool
    length: int


def lay_out(galleries: Iterable[tuple[str, ...]], place: Mapping[str, int]) -> tuple[Tensor, dict[tuple[str, ...], Gallery]]:
    """Give every picture of some galleries a column.

    Pictures of the same galleries lie side by side, so that every gallery is a few slices; within a slice, they are in the order of the
    table.

    Args:
        galleries: picture names of each, without duplicates.
        place: picture name -> place in the embedding table.

    Returns:
        (U + 1,) int64, the picture of each column as its place in the table, with P at the end; and the galleries by their names.
    """
    places = {names: torch.tensor([place[name] for name in names]) for names in dict.fromkeys(galleries)}
    kind = torch.zeros(len(place) + 1, dtype=torch.int64)  # bit i: in gallery i
    kind[-1] = 1 << len(places)
    for bit, pictures in enumerate(places.values()):
        kind[pictures] += 1 << bit
    order = kind.argsort(stable=True)[int((kind == 0).sum()) :]
    column = torch.empty_like(kind)
    column[order] = torch.arange(len(order))
    kinds, widths = kind[order].unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
    ends = widths.cumsum(0)
    slices = list(zip(kinds.tolist(), (ends - widths).tolist(), ends.tolist(), strict=True))
    found = {}
    for bit, (names, pictures) in enumerate(places.items()):
        columns = torch.cat([column[pictures], column[-1:]])
        index = torch.full_like(order, len(names))
        index[columns] = torch.arange(len(columns))
        parts = tuple((start, end) for bits, start, end in slices if bits >> bit & 1)
        found[names] = Gallery({name: i for i, name in enumerate(names)}, columns, index, parts)
    return order, found


def check(evaluation: EvaluationSet) -> None:
    """Refuse what cannot be ranked before anything is encoded.

    Raises:
        UserError: see :func:`view`.
    """
    place = {name: index for index, name in enumerate(evaluation.gallery)}
    view(evaluation, lay_out([evaluation.gallery], place)[1][evaluation.gallery], top=0)


def view(evaluation: EvaluationSet, gallery: Gallery, top: int) -> View:
    """Check an evaluation set and find its columns.

    Args:
        evaluation: the set.
        gallery: its gallery.
        top: longest list that is wanted.

    Raises:
        UserError: there are no queries; members are missing or are not in the gallery; a K exceeds the number of pictures to rank.
    """
    if not evaluation.queries:
        raise UserError(f"evaluation set {evaluation.name!r} has no queries; check its annotation file and split")
    alone, removes, nowhere = evaluation.members_only, evaluation.remove_reference, len(evaluation.gallery)
    has_subset = not alone and any(query.members for query in evaluation.queries)
    if alone or has_subset:
        for query in evaluation.queries:
            _check_members(query, evaluation, gallery)
    reference = _rectangle([(query.reference,) for query in evaluation.queries], gallery)
    right = _rectangle([query.targets for query in evaluation.queries], gallery)
    members = _rectangle([query.members for query in evaluation.queries], gallery)
    if removes or has_subset:
        members[members == reference] = nowhere
    if removes:
        right[right == reference] = nowhere
    if alone:
        right[~_among(right, members)] = nowhere
    else:
        members[_among(members, right)] = nowhere
    candidates = int((members < nowhere).sum(dim=1).min()) if alone else nowhere - removes
    _check_k(evaluation, candidates)
    return View(
        evaluation=evaluation,
        gallery=gallery,
        right=gallery.columns[right],
        removed=gallery.columns[reference if removes and not alone else torch.full_like(reference, nowhere)],
        members=gallery.columns[members],
        has_subset=has_subset,
        length=min(top, candidates),
    )


def _rectangle(rows: Sequence[tuple[str, ...]], gallery: Gallery) -> Tensor:
    """Gallery indices of names as (Nq, longest row, at least 1) int64; G for names that are not there and beyond the end of a row."""
    nowhere = len(gallery.at)
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    indices = torch.full((len(rows), max(1, int(lengths.max()))), nowhere)
    filled = torch.arange(indices.shape[1]) < lengths
    indices[filled] = torch.tensor([gallery.at.get(name, nowhere) for row in rows for name in row], dtype=torch.int64)
    return indices


def _among(some: Tensor, others: Tensor) -> Tensor:
    """Which of (Nq, A) are in the same row of (Nq, B): (Nq, A) bool."""
    return (some[:, :, None] == others[:, None]).any(dim=2)


def _check_k(evaluation: EvaluationSet, candidates: int) -> None:
    without = " without the reference" if evaluation.remove_reference else ""
    for figure, key, ks in (("R", "recall_at", evaluation.recall_at), ("mAP", "map_at", evaluation.map_at)):
        if (k := max(ks, default=0)) > candidates:
            raise UserError(
                f"evaluation set {evaluation.name!r}: {figure}@{k} of a gallery of {candidates} pictures{without}; "
                f"set {key} to {candidates} at most, or enlarge the gallery"
            )


def _check_members(query: Query, evaluation: EvaluationSet, gallery: Gallery) -> None:
    where = f"evaluation set {evaluation.name!r}, query {query.id!r}"
    kept = evaluation.members_only and not evaluation.remove_reference
    names = [name for name in query.members if kept or name != query.reference]
    if not names:
        others = "it is to be ranked among them alone" if evaluation.members_only else "other queries have some"
        raise UserError(f"{where}: no members besides the reference, but {others}; give every query its members")
    if missing := [name for name in names if name not in gallery.at]:
        raise UserError(f"{where}: member {missing[0]!r} is not in the gallery; add it there or take it out of the members")
    if query.targets and query.targets[0] not in names:
        raise UserError(f"{where}: the target {query.targets[0]!r} is not among the members besides the reference; add it")
    if not evaluation.members_only and (k := max(evaluation.subset_recall_at, default=0)) > len(names):
        raise UserError(f"{where}: R_subset@{k} of {len(names)} members; set subset_recall_at to {len(names)} at most")
