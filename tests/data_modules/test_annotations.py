from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from data_modules.annotations import PictureFolder, find_file, read_json, read_names, read_records, read_text
from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


# ---- files -----------------------------------------------------------------------------------------------------------------------


def test_the_first_place_that_has_the_file(tmp_path: Path):
    places = ("captions/cap.json", "cap.json", "old/cap.json")
    write(tmp_path / "old" / "cap.json", [])
    assert find_file(tmp_path, places, "mine") == tmp_path / "old" / "cap.json"
    write(tmp_path / "cap.json", [])
    (tmp_path / "captions" / "cap.json").mkdir(parents=True)  # a folder is no file
    assert find_file(tmp_path, places, "mine") == tmp_path / "cap.json"


@pytest.mark.parametrize(
    ("places", "named"),
    [(("a.json",), r"'a\.json' under"), (("a.json", "b.json", "c/d.json"), r"'a\.json' \(nor 'b\.json', 'c/d\.json'\) under")],
)
def test_a_file_that_is_nowhere_is_named_with_the_remedies(tmp_path: Path, places: tuple[str, ...], named: str):
    message = rf"mine: no file {named} root='{tmp_path}'; set --data\.root .*, or see cir data download mine for where to get it"
    with pytest.raises(UserError, match=message):
        find_file(tmp_path, places, "mine")


def test_json_with_and_without_a_byte_order_mark(tmp_path: Path):
    for mark in (b"", b"\xef\xbb\xbf"):
        assert read_json(write(tmp_path / "a.json", mark + '{"é": [1, null]}'.encode())) == {"é": [1, None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'[\n {"a": 1},\n {"a" 2}\n]',
            r"a\.json, line 3, column 7: broken JSON \(Expecting ':' delimiter\); get the file again, or mend it",
        ),
        (b'[{"a": 1}', r"a\.json, line 1, column 10: broken JSON"),
        (b"", r"a\.json, line 1, column 1: broken JSON"),
        (b"[" * 100_000, r"a\.json: lists or objects are nested too deep; get the file again, or mend it there"),
        (b'["gr\xf6n"]', r"a\.json: byte 4 is not UTF-8; get the file again, or save it as UTF-8"),
    ],
)
def test_broken_json_is_named_with_its_place(tmp_path: Path, content: bytes, message: str):
    with pytest.raises(UserError, match=message):
        read_json(write(tmp_path / "a.json", content))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.json: cannot be read \(No such file or directory\); check the path and its permissions"):
        read_text(tmp_path / "a.json")


# ---- records ---------------------------------------------------------------------------------------------------------------------

FIELDS = {"reference": str, "caption": str, "id": int}
FINE = {"reference": "a", "caption": "x", "id": 3, "more": None}


def test_records_have_their_fields_and_may_have_more(tmp_path: Path):
    records = [FINE, {**FINE, "caption": "y"}]
    assert read_records(write(tmp_path / "a.json", records), FIELDS, "captions") == records
    assert read_records(write(tmp_path / "a.json", []), FIELDS, "captions") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": FINE}, r"a\.json: a JSON dict, not the list that captions are; is it the file of another benchmark\?"),
        ([FINE, "x" * 99], r"a\.json, record 1: 'x{60}' is no object, as the records of captions are"),
        (
            [FINE, FINE, {"reference": "a", "id": 3}],
            r"a\.json, record 2: no 'caption' \(it has id, reference\).*another benchmark or version\?",
        ),
        ([{**FINE, "id": "3"}], r"a\.json, record 0: id='3', unlike captions"),
        ([{**FINE, "id": True}], r"a\.json, record 0: id=True, unlike captions"),
        ([{**FINE, "caption": "cut \ud83d"}], r"a\.json, record 0: caption='cut \\ud83d' has a NUL or half of a character; get the file"),
        ([{"a\nb": 1}], r"a\.json, record 0: no 'reference' \(it has a b\)"),
        ([{**FINE, "reference": None}], r"a\.json, record 0: reference=None"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str):
    with pytest.raises(UserError, match=message):
        read_records(write(tmp_path / "a.json", content), FIELDS, "captions")


def test_a_list_inside_an_object(tmp_path: Path):
    file = write(tmp_path / "a.json", {"info": {}, "images": [FINE]})
    assert read_records(file, FIELDS, "pictures", inside="images") == [FINE]
    with pytest.raises(UserError, match=r"a\.json: a JSON dict without a list 'info', not the list that pictures are; is it the file of"):
        read_records(file, FIELDS, "pictures", inside="info")


def test_fields_that_may_be_absent_or_blank_and_those_that_must_differ(tmp_path: Path):
    file = write(tmp_path / "a.json", [{"id": 5, "caption": " "}, {"id": 6, "caption": "x", "target": "a"}, {"id": 5, "caption": "x"}])
    fields = {"id": int, "caption": str, "target": str}
    assert len(read_records(file, fields, "captions", optional=("target",), blank=("caption",))) == 3
    with pytest.raises(UserError, match=r"a\.json, record 0: empty caption; write one, or take the record out"):
        read_records(file, fields, "captions", optional=("target",))
    with pytest.raises(UserError, match=r"a\.json, record 0: no 'target' \(it has caption, id\)"):
        read_records(file, fields, "captions", blank=("caption",))
    with pytest.raises(UserError, match=r"a\.json, record 2: id 5 is that of record 0, too; get the file again, or take one out"):
        read_records(file, fields, "captions", optional=("target",), blank=("caption",), unique="id")


def test_names_of_a_list_and_of_lines(tmp_path: Path):
    assert read_names(write(tmp_path / "a.json", ["b", "a"]), "a split") == ["b", "a"]
    assert read_names(write(tmp_path / "a.txt", b"\nb\r\na \n"), "a split") == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": "b"}, r"a\.json: not a JSON list of names, as a split is; is it the file of another benchmark\?"),
        (["a", 1], r"a\.json: not a JSON list of names"),
        (["a", ""], r"a\.json: '' is no name of a picture in the data set's folder; get the file again, or mend it there"),
        (["a", "/a"], r"a\.json: '/a' is no name"),
        (["a", "b/../../a"], r"a\.json: 'b/\.\./\.\./a' is no name"),
        (["a", "b/.."], r"a\.json: 'b/\.\.' is no name"),
        (["a", "b\n"], r"a\.json: 'b\\n' is no name"),
        (["a", "\ud83d"], r"a\.json: '\\ud83d' is no name"),
        (["a", "b", "c", "b"], r"a\.json: the name 'b' comes twice; get the file again, or take one out"),
    ],
)
def test_other_lists_of_names_are_refused(tmp_path: Path, content: object, message: str):
    with pytest.raises(UserError, match=message):
        read_names(write(tmp_path / "a.json", content), "a split")


# ---- pictures --------------------------------------------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_first_folder_that_exists(tmp_path: Path):
    assert PictureFolder(tmp_path, ("images", "resized")).folder == tmp_path / "images"
    touch(tmp_path, "resized/a.png")
    assert PictureFolder(tmp_path, ("images", "resized")).folder == tmp_path / "resized"
    touch(tmp_path, "images/a.png")
    assert PictureFolder(tmp_path, ("images", "resized")).folder == tmp_path / "images"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", "a.png"),
        ("b", "b.jpg"),
        ("c", "c.jpeg"),
        ("b.jpg", "b.jpg"),
        ("both", "both.png"),
        ("both.jpg", "both.jpg"),
        ("with.dots", "with.dots.jpg"),
        ("bare", "bare"),
        ("nowhere", "nowhere.png"),  # where it should be
        ("nowhere.JPG", "nowhere.JPG"),
        ("no.where", "no.where.png"),
    ],
)
def test_pictures_are_found_whatever_their_suffix(tmp_path: Path, name: str, expected: str):
    touch(tmp_path, *(f"images/{file}" for file in ("a.png", "b.jpg", "c.jpeg", "both.png", "both.jpg", "with.dots.jpg", "bare")))
    assert PictureFolder(tmp_path).path(name) == tmp_path / "images" / expected


def test_pictures_of_folders_inside(tmp_path: Path):
    touch(tmp_path, "images/train/a.jpg", "images/dev/b.png", "images/dev/a.png")
    folder = PictureFolder(tmp_path)
    inside = tmp_path / "images"
    assert folder.path("a", "train") == inside / "train" / "a.jpg"
    assert folder.path("a", "dev", "train") == inside / "dev" / "a.png"
    assert folder.path("b", "train", "dev") == inside / "dev" / "b.png"
    assert folder.path("c", "train", "dev") == inside / "train" / "c.png"
    assert folder.path("a") == inside / "a.png"  # which is not there


def test_each_folder_is_listed_once(tmp_path: Path):
    touch(tmp_path, "images/a.jpg")
    folder = PictureFolder(tmp_path)
    assert folder.path("a").suffix == ".jpg"
    touch(tmp_path, "images/b.jpg")
    assert folder.path("b").suffix == ".png"


def test_a_link_to_itself_is_a_picture_that_does_not_exist(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to("a.png")
    assert not PictureFolder(tmp_path).path("a").is_file()


def test_a_place_with_a_name_that_is_too_long_does_not_exist(tmp_path: Path):
    touch(tmp_path, "images/a.png")
    assert PictureFolder(tmp_path).path("a", "x" * 5000, "") == tmp_path / "images" / "a.png"


def test_links_must_stay_in_the_folder_which_may_be_one_itself(tmp_path: Path):
    root, disk = tmp_path / "mine", tmp_path / "disk"
    touch(disk, "a.jpg", "old/b.jpg")
    touch(tmp_path, "elsewhere.jpg")
    root.mkdir()
    (root / "images").symlink_to(disk)
    (disk / "inside.jpg").symlink_to(disk / "old" / "b.jpg")
    (disk / "outside.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    folder = PictureFolder(root)
    assert folder.path("inside") == root / "images" / "inside.jpg"
    message = rf"outside\.jpg is a symbolic link out of its folder, to {tmp_path}/elsewhere\.jpg; copy the picture there, or make 'images' "
    with pytest.raises(UserError, match=message):
        folder.path("outside")
