from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from data_modules.errors import UserError
from data_modules.missing import UNREADABLE, find_missing, leave_out, refuse_missing
from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Triplet
from data_modules.validation import validate

if TYPE_CHECKING:
    from pathlib import Path

NAMES = tuple("abcdefgh")
QUERIES = (
    Query("1", "a", "redder", ("b", "c")),
    Query("2", "b", "bluer", ("c", "b")),
    Query("3", "d", "wider", ("e",)),
)
SET = EvaluationSet("mine/all", QUERIES, NAMES, recall_at=(1, 5), map_at=(5,))


def pictures(root: Path) -> tuple[Picture, ...]:
    """One for each name; the box of the last one is a part of the same file as the one before."""
    return (*(Picture(name, root / f"{name}.png", name) for name in NAMES), Picture("part", root / "h.png", "part", box=(0, 0, 2, 2)))


@pytest.fixture
def whole(tmp_path: Path) -> Benchmark:
    """A data set whose files all exist."""
    for name in NAMES:
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    triplets = (Triplet("a", "x", "b"), Triplet("b", "y", "c"), Triplet("f", "z", "a"), Triplet("g", "w", "h"))
    hidden = replace(SET, name="mine/hidden", queries=tuple(replace(query, targets=()) for query in QUERIES))
    return Benchmark(pictures(tmp_path), triplets, (SET,), (SET,), (hidden,), unpaired=("g", "h"))


def lose(root: Path, *names: str) -> None:
    for name in names:
        (root / f"{name}.png").unlink()


# ---- stopping --------------------------------------------------------------------------------------------------------------------


def test_nothing_is_said_if_all_pictures_exist(whole: Benchmark, tmp_path: Path):
    refuse_missing(whole.pictures, "mine", tmp_path)


def test_missing_files_are_counted_once_and_the_first_are_named(whole: Benchmark, tmp_path: Path):
    lose(tmp_path, "b", "d", "e", "h")
    (tmp_path / "e.png").mkdir()  # a folder is no picture
    message = (
        rf"4 of 8 picture files do not exist, the first of them {tmp_path}/b\.png, {tmp_path}/d\.png, {tmp_path}/e\.png; see what is "
        rf"missing with cir data check mine --root {tmp_path}, or go on without them with --data\.missing=skip"
    )
    with pytest.raises(UserError, match=message):
        refuse_missing(whole.pictures, "mine", tmp_path)
    refuse_missing(whole.pictures[:1], "mine", tmp_path)  # only what is needed counts


# ---- finding ---------------------------------------------------------------------------------------------------------------------


def test_pictures_without_a_file_are_found(whole: Benchmark, tmp_path: Path):
    assert find_missing(whole.pictures, tmp_path) == set()
    lose(tmp_path, "b", "h")
    assert find_missing(whole.pictures, tmp_path) == {"b", "h", "part"}


def test_unreadable_pictures_are_those_of_the_list_that_still_are(whole: Benchmark, tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(b"<html>404</html>")
    (tmp_path / UNREADABLE).write_text(
        "a.png\tcannot read picture\nb.png\tcannot read\tpicture\nd.png\tcut off\nnowhere.png\tno such file\n"
    )
    assert find_missing(whole.pictures, tmp_path) == {"a", "b"}  # c was never checked, d has been replaced


def test_a_listed_file_is_left_out_only_for_boxes_outside_it(whole: Benchmark, tmp_path: Path):
    (tmp_path / UNREADABLE).write_text("h.png\tbox outside\n")
    outside = replace(whole.pictures[-1], box=(900, 900, 910, 910))
    assert find_missing([*whole.pictures, replace(outside, name="outside")], tmp_path) == {"outside"}


def test_listed_names_may_have_any_character_but_tabs_and_line_feeds(tmp_path: Path):
    name = "gr\u00f6\u00dfe\u2028a b\x0b.png"
    (tmp_path / name).write_bytes(b"")
    (tmp_path / UNREADABLE).write_text(f"{name}\tempty\n", encoding="utf-8")
    assert find_missing([Picture("a", tmp_path / name, "a")], tmp_path) == {"a"}


# ---- leaving out -----------------------------------------------------------------------------------------------------------------


def test_nothing_is_left_out_if_nothing_is_missing(whole: Benchmark):
    assert leave_out(whole, set()) is whole


@pytest.mark.parametrize(
    ("missing", "triplets", "queries", "ids"),
    [
        ("h", "xyz", 0, "123"),  # a target of training, a distractor
        ("f", "xyw", 0, "123"),  # a reference of training
        ("a", "yw", 1, "23"),  # a reference
        ("c", "xzw", 1, "13"),  # the first target of 2, the second of 1
        ("b", "zw", 2, "3"),  # the first target of 1, the reference of 2
        ("de", "xyzw", 1, "12"),
    ],
)
def test_what_needs_a_missing_picture_goes_and_is_counted(whole: Benchmark, missing: str, triplets: str, queries: int, ids: str):
    left = leave_out(whole, set(missing))
    validate(left, 60)
    assert "".join(triplet.caption for triplet in left.triplets) == triplets
    assert left.skipped_triplets == 4 - len(triplets)
    assert [picture.name for picture in left.pictures] == [picture.name for picture in whole.pictures if picture.name not in missing]
    for one in (*left.val, *left.test):
        assert "".join(query.id for query in one.queries) == ids
        assert (one.skipped_queries, one.skipped_pictures) == (queries, len(missing))
        assert one.gallery == tuple(name for name in NAMES if name not in missing)
    assert left.unpaired == tuple(name for name in "gh" if name not in missing)
    (secret,) = left.hidden  # without targets, only the reference is needed
    assert secret.skipped_queries == len(set(missing) & {query.reference for query in QUERIES})


def test_further_targets_and_members_that_are_missing_are_taken_out(whole: Benchmark):
    query = Query("q", "a", "redder", ("b", "c", "d"), ("a", "b", "e", "f", "g"))
    left = leave_out(replace(whole, val=(replace(SET, queries=(query,)),)), {"c", "e"})
    assert left.val[0].queries == (replace(query, targets=("b", "d"), members=("a", "b", "f", "g")),)
    assert left.val[0].skipped_queries == 0
    assert left.val[0].reduced_queries == 1
    assert left.val[0].fingerprint != whole.val[0].fingerprint


def test_a_mean_goes_with_the_figure_that_it_needs(whole: Benchmark):
    deep = replace(SET, recall_at=(1, len(NAMES) - 1), mean_of=("R@1", f"R@{len(NAMES) - 1}"))
    (left,) = leave_out(replace(whole, val=(deep,)), {"h"}).val
    assert (left.recall_at, left.mean_of) == ((1,), ())
    (left,) = leave_out(replace(whole, val=(replace(deep, mean_of=("R@1",)),)), {"h"}).val
    assert left.mean_of == ("R@1",)


def test_a_query_goes_with_so_many_members_that_a_k_is_larger_than_what_is_left(whole: Benchmark):
    queries = tuple(Query(str(n), "a", f"x{n}", ("b",), members) for n, members in enumerate((("a", *"bcd"), ("a", *"bcde"))))
    sets = replace(SET, queries=queries)
    assert [query.id for query in leave_out(replace(whole, val=(sets,)), {"h"}).val[0].queries] == ["0", "1"]
    (left,) = leave_out(replace(whole, val=(sets,)), {"d"}).val  # b and c are less than the 3 of R_subset@3; b, c and e are not
    assert ([query.id for query in left.queries], left.skipped_queries) == (["1"], 1)
    own = replace(sets, members_only=True, remove_reference=False, recall_at=(1, 2), map_at=())
    (left,) = leave_out(replace(whole, val=(own,)), {"c", "d"}).val
    assert ([query.id for query in left.queries], left.skipped_queries) == (["1"], 1)


def test_a_k_that_is_larger_than_what_is_left_of_the_gallery_goes(whole: Benchmark):
    (left,) = leave_out(whole, {"f", "g"}).val
    assert (left.recall_at, left.map_at) == ((1, 5), (5,))  # 6 pictures, of which one is the reference
    (left,) = leave_out(whole, {"f", "g", "h"}).val
    assert (left.recall_at, left.map_at) == ((1,), ())
    (left,) = leave_out(replace(whole, val=(replace(SET, remove_reference=False),)), {"f", "g", "h"}).val
    assert left.recall_at == (1, 5)


def test_a_set_of_which_nothing_is_left_stops(whole: Benchmark):
    message = (
        r"evaluation set 'mine/all': with --data\.missing=skip no query of 3 is left: 3 of 8 gallery pictures and perhaps their references "
        r"are missing; get them first"
    )
    with pytest.raises(UserError, match=message):
        leave_out(whole, {"a", "b", "d"})
