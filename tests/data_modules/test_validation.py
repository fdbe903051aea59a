"""What :mod:`test_base` does not try through the data module."""

from __future__ import annotations

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
        (with_query(caption="\t\n"), r"empty caption in query 'q' of val/original/dress; write one, or leave the record out"),
    ],
)
def test_records_that_would_give_a_wrong_figure_are_refused(records: Benchmark, message: str):
    with pytest.raises(UserError, match=message):
        validate(records, 60)


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\x00"])
def test_names_that_would_break_lists_are_refused(name: str):
    with pytest.raises(UserError, match=r"picture name 'a\\.*' has a tab, a line break or another control character; rename the file"):
        validate(replace(FINE, pictures=(*FINE.pictures, Picture(name, Path("x"), "x"))), 60)


def test_reference_may_be_a_target():
    """Real annotations have it; the ranking counts such queries as out of reach."""
    validate(with_query(targets=("a", "b"), members=()), 60)


def test_limit_of_words_is_inclusive():
    validate(FINE, 3)
    with pytest.raises(UserError, match=r'"make it red \.\.\." in query .* has 3 words, the limit is 2; .*--data\.max_caption_words 3'):
        validate(replace(FINE, triplets=()), 2)
