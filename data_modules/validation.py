"""Checks of a data set's records, so that a mistake in the annotations stops with its place and not with a wrong figure."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from data_modules.records import Benchmark, EvaluationSet, Picture, Query

_HALVES = r"\ud800-\udfff"  # of a character beyond the first 65,536: no UTF-8 file has one alone, but JSON can write it
UNFIT = rf"\x00-\x1f\x7f{_HALVES}"  # in names: control characters would break the lines of every list
_NO_TEXT, _NO_NAME = re.compile(rf"[\x00{_HALVES}]"), re.compile(f"[{UNFIT}]")
MAX_NAME, MAX_PATH = 255, 4095  # bytes of a file's name and of its whole path
SHOWN_WORDS = 8  # of an overlong caption


def validate(benchmark: Benchmark, max_caption_words: int) -> None:
    """Check all records of a data set.

    Args:
        benchmark: the records.
        max_caption_words: longest allowed caption, words.

    Raises:
        UserError: a picture name or query id is not unique, a name has control characters or is too long for a file, a record names a
            picture that is not there, a caption is empty, too long or no text, an evaluation set is empty, or a query's targets and members
            do not fit its gallery.
    """
    _refuse_duplicates([picture.name for picture in benchmark.pictures], "picture name")
    known = {picture.name for picture in benchmark.pictures}
    _refuse_unfit(known, "picture name")
    _refuse_unfit({triplet.group for triplet in benchmark.triplets}, "category")
    _refuse_long(benchmark.pictures)
    for number, triplet in enumerate(benchmark.triplets):
        place = f"training triplet {number} ({triplet.reference!r} to {triplet.target!r})"
        _check_caption(triplet.caption, place, max_caption_words)
        _refuse_no_text(triplet.wordings, place)
        _refuse_unknown((triplet.reference, triplet.target), known, f"training triplet {number}")
    _refuse_unknown(benchmark.unpaired, known, "the list of unpaired pictures")
    for split, sets in (("val", benchmark.val), ("test", benchmark.test), ("hidden", benchmark.hidden)):
        names = [evaluation.name for evaluation in sets]
        _refuse_duplicates(names, f"name of an evaluation set of {split}")
        _refuse_unfit(names, f"name of an evaluation set of {split}")
        if long := [name for name in names if len(name.encode()) > MAX_NAME - len(".png")]:
            raise UserError(f"name of an evaluation set of {split} {long[0]:.40}... is too long for its files; shorten its category")
        for evaluation in sets:
            _check_evaluation_set(evaluation, f"{split}/{evaluation.name}", known, max_caption_words, hidden=split == "hidden")


def _check_evaluation_set(evaluation: EvaluationSet, where: str, known: set[str], max_caption_words: int, *, hidden: bool) -> None:
    if not evaluation.queries:
        raise UserError(f"evaluation set {where} has no queries; leave it out, or check the annotation file that it comes from")
    ids = [query.id for query in evaluation.queries]
    _refuse_duplicates(ids, f"query id of {where}")
    _refuse_unfit(ids, f"query id of {where}")
    _refuse_duplicates(evaluation.gallery, f"gallery picture of {where}")
    _refuse_unknown(evaluation.gallery, known, f"the gallery of {where}")
    gallery = set(evaluation.gallery)
    for query in evaluation.queries:
        place = f"query {query.id!r} of {where}"
        if query.caption or not hidden:  # a server wants an answer to every query, also to CIRR's one without a caption
            _check_caption(query.caption, place, max_caption_words)
        _refuse_unknown((query.reference,), known, place)
        _check_answers(query, gallery, place, hidden=hidden)
        if query.members and not hidden and not _members_hold(query, evaluation):
            raise UserError(f"{place} has members without its reference or its first target; the subset metric needs both among them")


def _check_answers(query: Query, gallery: set[str], place: str, *, hidden: bool) -> None:
    if bool(query.targets) is hidden:
        what = "a target, but its answer is a server's secret" if hidden else "no target, so it cannot be scored"
        raise UserError(f"{place} has {what}; check the annotation file that it comes from")
    _refuse_duplicates(query.targets, f"target of {place}")
    _refuse_duplicates(query.members, f"member of {place}")
    if outside := sorted({*query.targets, *query.members} - gallery):
        raise UserError(f"{place} has the target or member {outside[0]!r}, which its gallery does not have and so cannot be found; add it")


def _members_hold(query: Query, evaluation: EvaluationSet) -> bool:
    needed = {query.targets[0]} if evaluation.members_only else {query.reference, query.targets[0]}
    return needed <= set(query.members)


def _check_caption(caption: str, where: str, limit: int) -> None:
    words = caption.split()
    if not words:
        raise UserError(f"empty caption in {where}; write one, or leave the record out")
    if len(words) > limit:
        raise UserError(
            f'caption "{" ".join(words[:SHOWN_WORDS])} ..." in {where} has {len(words)} words, the limit is {limit}; '
            f"shorten it, or set --data.max_caption_words {len(words)}"
        )
    _refuse_no_text((caption,), where)


def _refuse_unknown(names: Iterable[str], known: set[str], where: str) -> None:
    if missing := [name for name in names if name not in known]:
        raise UserError(
            f"{where} names {missing[0]!r}, which is not a picture of the data set ({len(missing)} such names); check its spelling"
        )


def is_text(value: str) -> bool:
    """Whether a file of text can hold it: it has neither NUL nor half of a character."""
    return (value.isascii() and "\0" not in value) or not _NO_TEXT.search(value)


def is_name(value: str) -> bool:
    """Whether a line of a list can hold it: it has no control characters and no half of a character."""
    return not _NO_NAME.search(value)


def _refuse_no_text(captions: Iterable[str], where: str) -> None:
    if broken := [caption for caption in captions if not is_text(caption)]:
        raise UserError(f"caption {broken[0]!a} in {where} has a NUL or half of a character; mend it in the annotation file")


def _refuse_unfit(names: Iterable[str], what: str) -> None:
    if broken := sorted(filter(_NO_NAME.search, names)):
        raise UserError(f"{what} {broken[0]!a} has a tab, a line break, another control character or half of a character; rename it")


def _refuse_long(pictures: Iterable[Picture]) -> None:
    """The system has an error instead of an answer to whether such a file exists."""
    for picture in pictures:
        path = str(picture.path)
        if len(path) > MAX_NAME or not path.isascii():
            longest = max(len(part.encode(errors="replace")) for part in picture.path.parts)
            if longest > MAX_NAME or len(path.encode(errors="replace")) > MAX_PATH:
                what = f"the name or path of the file of picture {picture.name[:40]!r}"
                raise UserError(f"{what} is too long, {len(path):,} characters; mend it in the annotation file")


def _refuse_duplicates(values: Sequence[str], what: str) -> None:
    if len(set(values)) < len(values):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        raise UserError(f"{what} {repeated[0]!r} is not unique ({len(repeated)} such values); each may come once")
