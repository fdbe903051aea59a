from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from data_modules.errors import UserError
from data_modules.records import EvaluationSet, Query, Triplet
from data_modules.triplets import Triplets

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "reference,caption,targets,split,category,subset\n"
TABLE = f"""{HEAD}\
a.png,now red,b.png|c.png,,shoes,
a.png,now blue,c.png,train,,
c.png,wider,d.png|a.png,val,shoes,a.png|d.png|e.png
d.png,"smaller, please",e.png,val,shoes,e.png|b.png
b.png,darker,a.png,val,,
e.png,longer,b.png,test,,
"""


def folder(root: Path, table: str, pictures: str = "abcdefg", name: str = "mine.csv") -> Path:
    (root / "images").mkdir(parents=True)
    (root / name).write_text(table, encoding="utf-8")
    for letter in pictures:
        Image.new("RGB", (4, 4)).save(root / "images" / f"{letter}.png")
    return root


def ready(root: Path, **options: Any) -> Triplets:
    data = Triplets(str(root), **options)
    data.setup()
    return data


def images(letters: str) -> tuple[str, ...]:
    return tuple(f"images/{letter}.png" for letter in letters)


def rows(count: int, targets: int) -> str:
    """Train rows."""
    return "reference,caption,target\n" + "".join(f"a.png,caption {n},t{n % targets}.png\n" for n in range(count))


def test_records(tmp_path: Path):
    data = ready(folder(tmp_path, TABLE))
    a, b, c, d, e = images("abcde")
    assert data.triplets == (Triplet(a, "now red", b, "shoes"), Triplet(a, "now red", c, "shoes"), Triplet(a, "now blue", c))
    protocol = "gallery: every picture of the folder; reference removed"
    shoes = (Query("4", c, "wider", (d, a), (c, a, d, e)), Query("5", d, "smaller, please", (e,), (d, e, b)))
    common: dict[str, Any] = {"recall_at": (1, 5), "average": "triplets/avg", "protocol": protocol}
    assert data.benchmark.val == (
        EvaluationSet("triplets/all", (Query("6", b, "darker", (a,)),), images("abcdefg"), subset_recall_at=(), **common),
        EvaluationSet("triplets/shoes", shoes, images("abcdefg"), subset_recall_at=(1, 2), **common),
    )
    (test,) = data.benchmark.test
    assert (test.name, test.queries) == ("triplets/all", (Query("7", e, "longer", (b,)),))
    assert {picture.name: picture.path for picture in data.pictures} == {name: tmp_path / name for name in images("abcdefg")}
    assert data.train_pictures() == sorted(data.picture_index[name] for name in (a, b, c))


def test_gallery_of_the_split_is_what_its_rows_name(tmp_path: Path):
    data = ready(folder(tmp_path, TABLE), gallery="split")
    assert [set(one.gallery) for one in data.benchmark.val] == [set(images("abcde"))] * 2
    assert [set(one.gallery) for one in data.benchmark.test] == [set(images("be"))]
    assert data.benchmark.val[0].recall_at == (1,)
    assert data.benchmark.val[0].protocol.startswith("gallery: the pictures that the split's rows name")


def test_json_lines_and_csv_give_the_same_records(tmp_path: Path):
    lines = (
        '{"reference": "a.png", "caption": "wide", "targets": ["b.png", "c.png"], "split": "val", "subset": ["b.png", "d.png"], "id": "q"}'
    )
    table = "reference,caption,targets,split,subset,id\na.png,wide,b.png|c.png,val,b.png|d.png,q\n"
    benchmarks = [ready(folder(tmp_path / name, text, name=name)).benchmark for name, text in (("mine.jsonl", lines), ("mine.csv", table))]
    assert benchmarks[0].val == benchmarks[1].val


def test_validation_is_held_out_by_target_if_no_row_is_marked(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        data = ready(folder(tmp_path, rows(200, targets=20)), gallery="split", val_share=0.2)
    (val,) = data.benchmark.val
    held_out = {query.targets[0] for query in val.queries}
    assert len(held_out) == 4
    assert len(val.queries) == 40
    assert not held_out & {triplet.target for triplet in data.triplets}
    assert len(data.triplets) == 160
    note = "has no row with split val: the 40 train rows of 4 targets are held out for validation (data.val_share 0.2)"
    assert note in caplog.text


def test_no_target_of_a_triplet_is_held_out(tmp_path: Path):
    """Not even a second one."""
    table = "reference,caption,targets\n" + "".join(f"a.png,caption {n},t{n % 9}.png|t{(n + 1) % 9}.png\n" for n in range(45))
    data = ready(folder(tmp_path, table), gallery="split", val_share=0.3)
    (val,) = data.benchmark.val
    held_out = {query.targets[0] for query in val.queries}
    assert (len(held_out), len(val.queries)) == (3, 15)
    assert not held_out & {triplet.target for triplet in data.triplets}
    assert {triplet.target for triplet in data.triplets} == {f"images/t{n}.png" for n in range(9)} - held_out


def test_what_is_held_out_depends_on_the_pictures_alone(tmp_path: Path):
    header, *body = rows(200, targets=20).splitlines()
    first = ready(folder(tmp_path / "a", rows(200, targets=20)), seed=1, val_share=0.2).benchmark.val[0]
    other = ready(folder(tmp_path / "b", "\n".join([header, *reversed(body)])), seed=2, val_share=0.2).benchmark.val[0]
    assert {query.targets for query in first.queries} == {query.targets for query in other.queries}


@pytest.mark.parametrize(("targets", "share", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.99, 2), (20, 0.0, 0)])
def test_something_is_held_out_and_something_is_left(tmp_path: Path, targets: int, share: float, expected: int):
    data = ready(folder(tmp_path, rows(40, targets)), val_share=share)
    held_out = {query.targets for one in data.benchmark.val for query in one.queries}
    assert len(held_out) == expected
    assert len({triplet.target for triplet in data.triplets}) == targets - expected


def test_a_row_for_val_keeps_all_train_rows(tmp_path: Path):
    table = "split,reference,caption,target\n" + "".join(f"train,a.png,x,{letter}.png\n" for letter in "bcdefg") + "val,a.png,x,b.png\n"
    assert len(ready(folder(tmp_path, table)).triplets) == 6


def test_a_file_without_train_rows_holds_nothing_out(tmp_path: Path):
    data = ready(folder(tmp_path, "split,reference,caption,target\ntest,a.png,x,b.png\n"))
    assert (data.triplets, data.benchmark.val, len(data.benchmark.test)) == ((), (), 1)


def test_columns_that_nothing_reads_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        ready(folder(tmp_path, "spilt,reference,caption,target\nval,a.png,x,b.png\nval,a.png,x,c.png\n"))
    assert "mine.csv: nothing reads the columns 'spilt'" in caplog.text


def test_without_a_folder_images_pictures_lie_beside_the_file(tmp_path: Path):
    table = "split,reference,caption,target\nval,a.png,x,new/b.png\n"
    (tmp_path / "new").mkdir()
    (tmp_path / "mine.csv").write_text(table)
    for name in ("a.png", "new/b.png", "new/c.png"):
        (tmp_path / name).touch()
    assert ready(tmp_path).benchmark.val[0].gallery == ("a.png", "new/b.png", "new/c.png")
    assert ready(tmp_path, pictures="new").benchmark.val[0].gallery == ("new/b.png", "new/c.png", "a.png")


def test_the_file_is_found(tmp_path: Path):
    root = folder(tmp_path, TABLE)
    (root / "._mine.csv").write_bytes(b"\0")  # macOS leaves such files on other disks
    assert len(ready(root).triplets) == 3
    (root / "other.jsonl").write_text("")
    with pytest.raises(
        UserError, match=r"must have one \*\.csv or \*\.jsonl, it has mine\.csv, other\.jsonl; name yours with --data\.file"
    ):
        ready(root)
    assert len(ready(root, file="mine.csv").triplets) == 3


def test_pictures_that_do_not_exist_are_named(tmp_path: Path):
    data = ready(folder(tmp_path, TABLE.rpartition("e.png,longer")[0], "abcd"))
    with pytest.raises(UserError, match=r"1 of 5 picture files do not exist, .*/images/e\.png; .* cir data check triplets --root"):
        data.require_pictures(range(len(data.pictures)))
    left = ready(tmp_path, missing="skip").benchmark.val
    assert [(len(one.queries), one.skipped_queries, one.skipped_pictures) for one in left] == [(1, 0, 1), (1, 1, 1)]


WRONG = [
    (f"{HEAD}../x.png,y,a.png,test,,\n", {}, r"mine\.csv, line 2: picture '\.\./x\.png' is outside the data set's folder"),
    (f"{HEAD}a.png,x,b.png,val,avg,\n", {}, r"line 2: category 'avg' is the name of the categories' mean; choose another"),
    (
        f"{HEAD}a.png,x,b.png,val,,b.png|c.png\na.png,x,b.png,val,,\n",
        {},
        r"line 3 has no subset, but query '2' of the same split and category has one; all need one, or none",
    ),
    (f"{HEAD}a.png,x,a.png,val,,\n", {"gallery": "split"}, r"the gallery of val is the picture 'images/a\.png' alone"),
    (f"{HEAD}a.png,x,b.png,,,\nc.png,x,b.png,,,\n", {}, r"as all train rows have one target, none can be held out .* --data\.val_share 0"),
    (f"{HEAD}a.png,x,b.png,val,,\na.png,x,{'c' * 300}.png,val,,\n", {}, r"path of the file of picture '.*' is too long"),
    (TABLE, {"file": "nowhere.csv"}, r"no file 'nowhere\.csv' under root=.*; set --data\.file to one that is there"),
    (TABLE, {"file": "../mine.csv"}, r"no file '\.\./mine\.csv' under root="),
    (TABLE, {"pictures": "photos"}, r"no folder 'photos' under root=.*; set --data\.pictures to one that is there"),
    (TABLE, {"val_share": 1.0}, r"data\.val_share is 1\.0; set --data\.val_share to a share from 0 to below 1"),
    (f"{HEAD}a.png,{'x ' * 61},b.png,val,,\n", {}, r"query '2' of val/triplets/all has 61 words"),
]


@pytest.mark.parametrize(("table", "options", "message"), WRONG)
def test_what_is_refused(tmp_path: Path, table: str, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        ready(folder(tmp_path, table), **options)


def test_a_folder_without_a_file_or_no_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"must have one \*\.csv or \*\.jsonl, it has none"):
        ready(tmp_path)
    with pytest.raises(UserError, match=r"there is no folder root='.*/nowhere'; set --data\.root to that of your file and your pictures"):
        ready(tmp_path / "nowhere")
