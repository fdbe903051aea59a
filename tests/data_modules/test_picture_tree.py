from __future__ import annotations

import os
from pathlib import Path
from unicodedata import normalize

import pytest

from data_modules.errors import UserError
from data_modules.picture_tree import PictureTree

COMPOSED, DECOMPOSED = (normalize(form, "été/größe.jpg") for form in ("NFC", "NFD"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def tree(root: Path, pictures: str = "", beside: str = "") -> PictureTree:
    return PictureTree(root, root / beside, root / pictures)


def test_paths_are_relative_to_the_file_or_to_the_folder_of_pictures(tmp_path: Path):
    touch(tmp_path, "images/a.jpg", "images/old/b.jpg", "lists/c.jpg", "lists/old/b.jpg")
    found = tree(tmp_path, "images", beside="lists")
    names = ["a.jpg", "../images/a.jpg", str(tmp_path / "images" / "a.jpg"), "./old//b.jpg", "c.jpg"]
    assert [found.find(name, "here") for name in names] == [*["images/a.jpg"] * 3, "lists/old/b.jpg", "lists/c.jpg"]
    assert found.paths == {name: tmp_path / name for name in ("images/a.jpg", "lists/old/b.jpg", "lists/c.jpg")}


@pytest.mark.parametrize(("written", "expected"), [("a.jpg", "images/a.jpg"), ("images/a.jpg", "images/a.jpg"), ("new/a.jpg", "new/a.jpg")])
def test_a_picture_that_is_not_there_has_the_likeliest_place(tmp_path: Path, written: str, expected: str):
    touch(tmp_path, "images/b.jpg")
    found = tree(tmp_path, "images")
    assert found.find(written, "here") == expected
    assert found.paths == {expected: tmp_path / expected}


@pytest.mark.parametrize("on_disk", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("written", [COMPOSED, DECOMPOSED])
def test_accents_may_be_coded_either_way(tmp_path: Path, on_disk: str, written: str):
    touch(tmp_path, on_disk)
    found = tree(tmp_path)
    assert found.find(written, "here") == COMPOSED
    assert list(found.all()) == [COMPOSED]
    assert found.paths == {COMPOSED: tmp_path / on_disk}


def test_two_files_that_differ_only_in_coded_accents_are_refused(tmp_path: Path):
    touch(tmp_path, COMPOSED)
    touch(tmp_path / normalize("NFC", "été"), DECOMPOSED.rpartition("/")[2])
    message = r"été has two files whose names differ only in how accents are coded, '.*' and '.*'; rename or delete one"
    with pytest.raises(UserError, match=message):
        list(tree(tmp_path).all())


def test_all_pictures_of_the_folder_and_those_below_it(tmp_path: Path):
    touch(tmp_path, "b.PNG", "a/b.heic", "a/a b.webp", "a/c.txt", "mine.csv", ".hidden.png", "._b.png", ".cache/x.png", "a/runs/x.gif")
    touch(tmp_path, "runs/triplets/test/triplets-all.png")
    assert list(tree(tmp_path).all()) == ["a/a b.webp", "a/b.heic", "a/runs/x.gif", "b.PNG"]
    assert list(tree(tmp_path, "a").all()) == ["a/a b.webp", "a/b.heic", "a/runs/x.gif"]


@pytest.mark.parametrize("written", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, written: str):
    root = tmp_path / "mine"
    touch(root, "images/a.jpg")
    message = rf"mine\.csv, line 3: picture '{written}' is outside the data set's folder {root}; put it there"
    with pytest.raises(UserError, match=message):
        tree(root, "images").find(written, "mine.csv, line 3")


@pytest.mark.parametrize("link", ["a.jpg", "a"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, link: str):
    root, outside = tmp_path / "mine", tmp_path / "elsewhere"
    touch(outside, "b.jpg")
    root.mkdir()
    (root / link).symlink_to(outside / "b.jpg" if link == "a.jpg" else outside)
    message = rf"mine/{link} is a symbolic link out of the data set's folder, to {outside}.*; copy what it leads to there"
    with pytest.raises(UserError, match=message):
        tree(root).find("a.jpg" if link == "a.jpg" else "a/b.jpg", "here")
    with pytest.raises(UserError, match=message):
        list(tree(root).all())


def test_links_inside_the_folder_and_the_folder_of_pictures_itself_may_be_links(tmp_path: Path):
    root = tmp_path / "mine"
    touch(tmp_path, "disk/a.jpg", "disk/old/b.jpg")
    root.mkdir()
    (root / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "c.jpg").symlink_to(tmp_path / "disk" / "a.jpg")
    (tmp_path / "disk" / "new").symlink_to(tmp_path / "disk" / "old")
    found = tree(root, "images")
    assert list(found.all()) == ["images/a.jpg", "images/c.jpg", "images/old/b.jpg"]  # of new/ under its own folder
    assert found.find("new/b.jpg", "here") == "images/new/b.jpg"


def test_a_link_to_itself_is_a_picture_that_does_not_exist(tmp_path: Path):
    touch(tmp_path, "b.png")
    (tmp_path / "a.png").symlink_to("a.png")
    found = tree(tmp_path)
    assert list(found.all()) == ["a.png", "b.png"]
    assert found.find("a.png", "here") == "a.png"
    assert not found.paths["a.png"].is_file()


def test_names_that_are_no_text_are_refused(tmp_path: Path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn.jpg")).touch()
    with pytest.raises(UserError, match=r"the name of picture 'gr\\udcfcn.jpg' is not UTF-8; rename the file"):
        list(tree(tmp_path).all())
