from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fakes.tiny import TinyCIR
from fakes.triplets import write_triplets
from PIL import Image

from data_modules import picture_files
from data_modules.base import CIRDataModule
from data_modules.check import MISSING, check, to_text, write_lists
from data_modules.errors import UserError
from data_modules.missing import UNREADABLE
from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Triplet
from data_modules.triplets import Triplets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAMES = tuple("abcdefg")
OFFICIAL = {"train triplets": 3, "train/dress triplets": 2, "val/mine/all queries": 1, "val/mine/all gallery": 4, "hidden/mine gallery": 5}


class Mine(CIRDataModule):
    """Three triplets of two groups, a val set and a hidden test set; the picture ``g`` is unpaired."""

    def __init__(self, root: Path, official: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.root, self.counts = root, official or {}

    @property
    def official(self) -> Mapping[str, int]:
        """As told."""
        return self.counts

    def read(self) -> Benchmark:
        """The records."""
        triplets = (Triplet("a", "x", "b", "dress"), Triplet("b", "x", "c", "dress"), Triplet("b", "x", "a", "shirt"))
        query = Query("1", "d", "x", ("e",))
        val = EvaluationSet("mine/all", (query,), ("a", "c", "e", "f"))
        hidden = EvaluationSet("mine", (replace(query, targets=()),), tuple("abcde"))
        return Benchmark(tuple(Picture(n, self.root / f"{n}.png", n) for n in NAMES), triplets, (val,), (), (hidden,), unpaired=("g",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with all pictures."""
    for name in NAMES:
        Image.effect_noise((64, 64), 50).save(tmp_path / f"{name}.png")
    return tmp_path


def spoil(root: Path) -> None:
    """Two pictures are missing, one is cut off and one is no picture."""
    (root / "a.png").unlink()
    (root / "g.png").unlink()
    (root / "e.png").write_bytes((root / "e.png").read_bytes()[:-2000])
    (root / "f.png").write_bytes(b"<html>404\tNot\nFound</html>")


def table(text: str) -> dict[str, list[str]]:
    """Cells by name of the part."""
    header, *lines = (line.split() for line in text.partition("\n\n")[0].splitlines())
    assert header == ["part", "triplets/queries", "official", "gallery", "official", "pictures", "missing", "unreadable"]
    return {name: cells for name, *cells in lines}


def test_all_is_there(root: Path):
    report = check(Mine(root, OFFICIAL))
    assert report.complete
    assert (report.files, report.missing, report.unreadable, report.unofficial) == (7, {}, {}, ())
    text = to_text(report, root)
    assert table(text) == {
        "train": ["3", "3", "-", "-", "4", "0", "0"],
        "train/dress": ["2", "2", "-", "-", "3", "0", "0"],
        "train/shirt": ["1", "-", "-", "-", "2", "0", "0"],
        "val/mine/all": ["1", "1", "4", "4", "5", "0", "0"],
        "hidden/mine": ["1", "-", "5", "5", "5", "0", "0"],
    }
    assert text.endswith("\n\ncomplete: 7 picture files, and all counts are the official ones")


def test_missing_and_unreadable_pictures_are_counted_where_they_are_needed(root: Path):
    spoil(root)
    report = check(Mine(root))
    assert not report.complete
    assert report.missing == {root / "a.png": "no such file", root / "g.png": "no such file"}
    assert report.unreadable is not None
    assert list(report.unreadable) == [root / "e.png", root / "f.png"]
    text = to_text(report, root)
    assert {name: cells[-3:] for name, cells in table(text).items()} == {
        "train": ["4", "2", "0"],
        "train/dress": ["3", "1", "0"],
        "train/shirt": ["2", "1", "0"],
        "val/mine/all": ["5", "1", "2"],
        "hidden/mine": ["5", "1", "1"],
    }
    assert f"\n2 of 7 picture files do not exist; they are listed in {root / MISSING}\n" in text
    assert f"\n2 of 7 picture files cannot be read; they are listed in {root / UNREADABLE}, with the reasons\n" in text
    assert "with --data.missing=skip they leave them out" in text


def test_a_missing_picture_of_training_alone_is_enough(root: Path):
    (root / "g.png").unlink()
    assert not check(Mine(root)).complete


def test_counts_that_are_not_the_official_ones_are_named(root: Path):
    report = check(Mine(root, {**OFFICIAL, "train triplets": 4, "val/mine/all gallery": 3, "test/mine queries": 9}))
    assert not report.complete
    assert report.unofficial == ("train triplets", "val/mine/all gallery", "test/mine queries")
    text = to_text(report, root)
    assert table(text)["train"][:2] == ["3", "4"]
    assert table(text)["test/mine"] == ["-", "9", "-", "-", "0", "0", "0"]  # a part that is not there at all
    assert "other counts than the official ones: train triplets, val/mine/all gallery, test/mine queries; get the annotation files" in text


def test_fast_does_not_open_the_files(root: Path):
    spoil(root)
    report = check(Mine(root), fast=True)
    assert len(report.missing) == 2
    assert report.unreadable is None
    text = to_text(report, root)
    assert table(text)["val/mine/all"][-3:] == ["5", "1", "-"]
    assert "the files were not opened; without --fast, damaged ones are found, too" in text


def test_a_picture_bomb_is_unreadable(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 64 * 64)
    Image.new("L", (65, 64)).save(root / "b.png")
    report = check(Mine(root))
    assert report.unreadable is not None
    assert "b.png has 65 x 64 pixels" in report.unreadable[root / "b.png"]


def test_roles_are_no_categories(tmp_path: Path):
    parts = [part.name for part in check(TinyCIR(str(tmp_path)), fast=True).parts]
    assert parts == ["train", "val/tiny/colour", "val/tiny/shape", "test/tiny/colour", "test/tiny/shape"]  # 13 groups


def test_records_that_are_wrong_stop(root: Path, monkeypatch: pytest.MonkeyPatch):
    wrong = replace(Mine(root).read(), unpaired=("nowhere",))
    monkeypatch.setattr(Mine, "read", lambda self: wrong)
    with pytest.raises(UserError, match="the list of unpaired pictures names 'nowhere'"):
        check(Mine(root))


# ---- lists -----------------------------------------------------------------------------------------------------------------------


def test_lists_are_written_as_they_are_read(root: Path):
    spoil(root)
    write_lists(check(Mine(root)), root)
    assert (root / MISSING).read_text() == "a.png\tno such file\ng.png\tno such file\n"
    lines = [line.split("\t") for line in (root / UNREADABLE).read_text().splitlines()]
    assert [path for path, _ in lines] == ["e.png", "f.png"]
    assert all(reason.startswith("cannot read picture") for _, reason in lines)
    assert not list(root.glob(".*"))


def test_a_list_goes_when_it_would_be_empty_and_stays_when_nothing_was_opened(root: Path):
    spoil(root)
    write_lists(check(Mine(root)), root)
    for name in NAMES:
        Image.new("L", (9, 9)).save(root / f"{name}.png")
    write_lists(check(Mine(root), fast=True), root)
    assert [path.name for path in root.glob("*.tsv")] == [UNREADABLE]
    write_lists(check(Mine(root)), root)
    assert list(root.glob("*.tsv")) == []


def test_a_path_outside_the_folder_is_listed_whole(root: Path, tmp_path_factory: pytest.TempPathFactory):
    spoil(root)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    report = check(Mine(root))
    write_lists(report, elsewhere)
    assert (elsewhere / MISSING).read_text().splitlines()[0] == f"{root}/a.png\tno such file"


def test_a_folder_that_cannot_be_written_is_named(root: Path):
    spoil(root)
    (root / MISSING).mkdir()
    with pytest.raises(UserError, match=r"cannot write .*missing\.tsv \(.*\); make the folder writable"):
        write_lists(check(Mine(root)), root)


# ---- together with what reads them -----------------------------------------------------------------------------------------------


def test_skip_leaves_out_what_the_check_found(tmp_path: Path):
    write_triplets(tmp_path)
    whole = Triplets(str(tmp_path))
    whole.setup()
    (tmp_path / "images" / "red bar.png").unlink()
    (tmp_path / "images" / "red cross.png").write_bytes(b"")
    write_lists(check(Triplets(str(tmp_path))), tmp_path)
    data = Triplets(str(tmp_path), missing="skip", gallery="split")
    data.setup()
    lost = {"images/red bar.png", "images/red cross.png"}
    needed = [{t.reference, t.target} for t in whole.triplets]
    assert data.benchmark.skipped_triplets == sum(bool(names & lost) for names in needed) > 0
    bar = next(one for one in data.benchmark.test if one.name == "triplets/bar")
    asked = next(one for one in whole.benchmark.test if one.name == "triplets/bar").queries
    assert bar.skipped_queries == sum("images/red bar.png" in (query.reference, query.targets[0]) for query in asked) > 0
    assert bar.skipped_pictures == 2
    assert not lost & {picture.name for picture in data.pictures}
