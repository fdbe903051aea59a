"""What :mod:`test_base` does not try through the data module."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from data_modules.errors import UserError
from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Triplet
from data_modules.validation import validate

NAMES = ("a", "b", "c", "d")
QUERY = Query("q", "a", "make it red", ("b", "c"), ("a", "b", "d"))
SET = EvaluationSet("original/dress", (QUERY,), NAMES)
FINE = Benchmark(tuple(Picture(name, Path(name), name) for name in NAMES), (Triplet("a", "now blue", "b"),), (SET,), (SET,))


def with_query(**changes: object) -> Benchmark:
    return replace(FINE, val=(replace(SET, queries=(replace(QUERY, **changes),)),))  # type: ignore[arg-type]


def with_triplet(**changes: object) -> Benchmark:
    return replace(FINE, triplets=(replace(FINE.triplets[0], **changes),))  # type: ignore[arg-type]


def test_fine_records_pass():
    validate(FINE, 3)
    validate(Benchmark(FINE.pictures, (), (), ()), 1)
    validate(with_query(members=()), 3)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (with_query(targets=("b", "c", "b")), r"target of query 'q' of val/original/dress 'b' is not unique \(1 such values\)"),
        (with_query(members=("a", "b", "d", "d")), r"member of query 'q' of val/original/dress 'd' is not unique"),
        (with_query(members=("a", "c", "d")), r"query 'q' of val/original/dress has members without its reference or its first target"),
        (
            with_query(caption="cut \ud83d"),
            r"caption 'cut \\ud83d' in query 'q' of val/original/dress has a NUL or half of a character; mend",
        ),
        (with_query(caption="\0"), r"caption '\\x00' in query 'q' of val/original/dress has a NUL"),
        (with_query(id="q\n"), r"query id of val/original/dress 'q\\n' has a tab, a line break"),
        (replace(FINE, val=(replace(SET, name="a\0"),)), r"name of an evaluation set of val 'a\\x00' has a tab, a line break"),
        (with_triplet(group="a\0"), r"category 'a\\x00' has a tab, a line break"),
        (with_triplet(wordings=("fine", "\udc00")), r"caption '\\udc00' in training triplet 0 \('a' to 'b'\) has a NUL or half of a"),
        (with_query(caption="\t\n"), r"empty caption in query 'q' of val/original/dress; write one, or leave the record out"),
    ],
)
def test_records_that_would_give_a_wrong_figure_are_refused(records: Benchmark, message: str):
    with pytest.raises(UserError, match=message):
        validate(records, 60)


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\x00", "a\ud83d"])
def test_names_that_would_break_lists_are_refused(name: str):
    message = r"picture name 'a\\.*' has a tab, a line break, another control character or half of a character; rename it"
    with pytest.raises(UserError, match=message):
        validate(replace(FINE, pictures=(*FINE.pictures, Picture(name, Path("x"), "x"))), 60)


@pytest.mark.parametrize(
    ("path", "fine"), [("a" * 255, True), ("a" * 256, False), ("é" * 128, False), ("a/" * 2000, True), ("a/" * 2049, False)]
)
def test_names_that_no_file_can_have_are_refused(path: str, *, fine: bool):
    records = replace(FINE, pictures=(*FINE.pictures, Picture("e", Path(path), "e")))
    with (
        nullcontext() if fine else pytest.raises(UserError, match=r"the file of picture 'e' is too long, [\d,]+ characters; mend it in the")
    ):
        validate(records, 60)


def test_reference_may_be_a_target():
    """Real annotations have it; the ranking counts such queries as out of reach."""
    validate(with_query(targets=("a", "b"), members=()), 60)


def test_limit_of_words_is_inclusive():
    validate(FINE, 3)
    with pytest.raises(UserError, match=r'"make it red \.\.\." in query .* has 3 words, the limit is 2; .*--data\.max_caption_words 3'):
        validate(replace(FINE, triplets=()), 2)
