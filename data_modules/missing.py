"""Pictures that are not there: found before anything is computed, and left out only when that is asked for."""

# ruff: noqa: PTH113 - unlike Path.is_file, os.path.isfile has an answer for a folder that may not be searched

from __future__ import annotations

from dataclasses import replace
from os.path import isfile
from typing import TYPE_CHECKING

from data_modules.annotations import read_text
from data_modules.errors import UserError
from data_modules.images import load_image

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from data_modules.records import Benchmark, EvaluationSet, Picture, Query

UNREADABLE = "unreadable.tsv"  # in the folder of the data set: path and reason, written by ``cir data check``
SHOWN = 3


def refuse_missing(pictures: Iterable[Picture], benchmark: str, root: Path) -> None:
    """Stop if a picture file does not exist.

    Args:
        pictures: those that are needed.
        benchmark: name of its data module's recipe, for the remedy.
        root: folder of the data set, for the remedy.

    Raises:
        UserError: files do not exist; says how many, names the first ones and the remedies.
    """
    files = dict.fromkeys(picture.path for picture in pictures)
    if absent := [path for path in files if not isfile(path)]:
        first = ", ".join(str(path) for path in absent[:SHOWN])
        raise UserError(
            f"{len(absent):,} of {len(files):,} picture files do not exist, the first of them {first}; see what is missing with "
            f"cir data check {benchmark} --root {root}, or go on without them with --data.missing=skip"
        )


def find_missing(pictures: Iterable[Picture], root: Path) -> set[str]:
    """Names of the pictures whose file does not exist, or was found unreadable by ``cir data check`` and still is."""
    path = root / UNREADABLE
    lines = read_text(path).split("\n") if path.is_file() else []
    listed = {root / line.partition("\t")[0] for line in lines if line}
    return {picture.name for picture in pictures if not isfile(picture.path) or (picture.path in listed and not _is_readable(picture))}


def _is_readable(picture: Picture) -> bool:
    try:
        load_image(picture.path, picture.box)
    except UserError:
        return False
    return True


def leave_out(benchmark: Benchmark, missing: set[str]) -> Benchmark:
    """The records without the missing pictures: without triplets and queries that need them, and with counts of what was left out.

    A query goes if its reference or its first target is missing, or so many of its members that a K is larger than what is left; further
    targets and members that are missing are taken out of it. A K that is larger than what is left of the gallery goes, too,
    and a mean that needs its figure.

    Raises:
        UserError: nothing is left of an evaluation set.
    """
    if not missing:
        return benchmark
    triplets = tuple(t for t in benchmark.triplets if not {t.reference, t.target} & missing)
    return replace(
        benchmark,
        pictures=tuple(picture for picture in benchmark.pictures if picture.name not in missing),
        triplets=triplets,
        skipped_triplets=benchmark.skipped_triplets + len(benchmark.triplets) - len(triplets),
        val=tuple(_without(evaluation, missing) for evaluation in benchmark.val),
        test=tuple(_without(evaluation, missing) for evaluation in benchmark.test),
        hidden=tuple(_without(evaluation, missing) for evaluation in benchmark.hidden),
        unpaired=tuple(name for name in benchmark.unpaired if name not in missing),
    )


def _without(evaluation: EvaluationSet, missing: set[str]) -> EvaluationSet:
    gallery = tuple(name for name in evaluation.gallery if name not in missing)
    candidates = len(gallery) - evaluation.remove_reference
    kept = [
        query
        for query in evaluation.queries
        if not {query.reference, *query.targets[:1]} & missing and _has_rivals(query, evaluation, missing)
    ]
    lost = len(evaluation.gallery) - len(gallery)
    too_deep = {f"{figure}@{k}" for figure, ks in (("R", evaluation.recall_at), ("mAP", evaluation.map_at)) for k in ks if k > candidates}
    if not kept:
        raise UserError(
            f"evaluation set {evaluation.name!r}: with --data.missing=skip no query of {len(evaluation.queries):,} is left: "
            f"{lost:,} of {len(evaluation.gallery):,} gallery pictures and perhaps their references are missing; get them first"
        )
    return replace(
        evaluation,
        queries=tuple(
            replace(
                query,
                targets=tuple(name for name in query.targets if name not in missing),
                members=tuple(name for name in query.members if name not in missing),
            )
            for query in kept
        ),
        gallery=gallery,
        recall_at=tuple(k for k in evaluation.recall_at if k <= candidates),
        map_at=tuple(k for k in evaluation.map_at if k <= candidates),
        mean_of=evaluation.mean_of if too_deep.isdisjoint(evaluation.mean_of) else (),
        skipped_queries=len(evaluation.queries) - len(kept),
        skipped_pictures=lost,
        reduced_queries=sum(not missing.isdisjoint((*query.targets, *query.members)) for query in kept),
    )


def _has_rivals(query: Query, evaluation: EvaluationSet, missing: set[str]) -> bool:
    """Whether enough members are left to choose from."""
    deepest = max(evaluation.recall_at if evaluation.members_only else evaluation.subset_recall_at, default=0)
    return not query.members or len({*query.members} - {query.reference} - missing) >= deepest
