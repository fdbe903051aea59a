from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from fakes.circo import IDS, TEST, VAL, write_circo
from fakes.files import edit, set_field, write_json

from data_modules.circo import CIRCO
from data_modules.errors import UserError
from data_modules.records import Submission
from data_modules.validation import validate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from data_modules.records import Benchmark

VAL_FILE, TEST_FILE = "annotations/val.json", "annotations/test.json"
INFO = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"


def ready(root: Path, **options: Any) -> CIRCO:
    data = CIRCO(str(root), **options)
    data.setup("test")
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_circo(tmp_path_factory.mktemp("circo"))


@pytest.fixture(scope="module")
def data(root: Path) -> CIRCO:
    return ready(root)


# ---- the real files ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """The real annotation files over a made-up list of as many pictures as COCO's, which has all that they name."""
    root = tmp_path_factory.mktemp("real circo")
    shutil.copytree(annotations / "circo", root, dirs_exist_ok=True)
    records = [record for split in ("val", "test") for record in json.loads((root / "annotations" / f"{split}.json").read_text())]
    named = {number for r in records for number in (r["reference_img_id"], *r.get("gt_img_ids", ()))}
    others = (number for number in range(1_000_000) if number not in named)
    numbers = sorted([*named, *(next(others) for _ in range(123_403 - len(named)))])
    write_json(root / INFO, {"images": [{"file_name": f"{number:012d}.jpg", "id": number} for number in numbers]})
    return CIRCO(str(root)).read()


def test_counts_are_those_of_the_benchmark(real: Benchmark):
    validate(real, 60)
    (val,), (test,) = real.val, real.hidden
    assert (len(val.queries), len(test.queries)) == (220, 800)
    assert len(val.gallery) == len(test.gallery) == len(real.pictures) == 123_403
    assert sorted(CIRCO().official.values()) == [220, 800, 123_403, 123_403]
    counts = [len(query.targets) for query in val.queries]
    assert (min(counts), max(counts), round(sum(counts) / len(counts), 2)) == (1, 14, 4.16)
    assert [query.id for query in test.queries] == [str(number) for number in range(800)]
    first = val.queries[0]
    assert (first.reference, first.targets) == ("271520", ("355099", "528417", "534704"))


# ---- the miniature -------------------------------------------------------------------------------------------------------------------


def test_val_is_scored_by_all_right_answers_and_by_the_first(data: CIRCO):
    (val,) = data.evaluation_sets("test")
    assert (val.name, val.map_at, val.recall_at, val.recall_of) == ("circo", (5, 10, 25, 50), (5, 10, 25, 50), "first")
    assert (val.remove_reference, val.members_only, val.submission) == (False, False, None)
    assert val.gallery == tuple(map(str, IDS))
    assert len(val.queries) == VAL
    query = val.queries[3]
    assert (query.id, query.reference, query.caption) == ("3", str(IDS[3]), "has 3 more dogs")
    assert query.targets == tuple(map(str, IDS[22:26]))


def test_target_comes_first(tmp_path: Path):
    edit(write_circo(tmp_path) / VAL_FILE, set_field(3, target_img_id=IDS[24]))
    assert ready(tmp_path).evaluation_sets("val")[0].queries[3].targets == tuple(str(IDS[at]) for at in (24, 22, 23, 25))


def test_test_is_predicted_for_the_server(data: CIRCO):
    (test,) = data.evaluation_sets("predict")
    assert test.submission == Submission("circo.json", 50, (), integers=True)
    assert [(query.id, query.targets) for query in test.queries] == [(str(number), ()) for number in range(TEST)]


def test_shared_concept_changes_captions_protocol_and_fingerprint(root: Path, data: CIRCO):
    (plain,), (shared,) = data.evaluation_sets("val"), ready(root, shared_concept=True).evaluation_sets("val")
    assert shared.queries[3].caption == "find a small dog but has 3 more dogs"
    assert shared.protocol == plain.protocol + ", with the shared concept in the caption"
    assert shared.fingerprint != plain.fingerprint


@pytest.mark.parametrize("coco", ["COCO2017_unlabeled", "."])
def test_layouts(tmp_path: Path, coco: str):
    write_circo(tmp_path)
    if coco == ".":
        shutil.copytree(tmp_path / "COCO2017_unlabeled", tmp_path, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "COCO2017_unlabeled")
    data = ready(tmp_path)
    data.require_pictures(range(len(data.pictures)))
    assert data.pictures[0].path == tmp_path / coco / "unlabeled2017" / f"{IDS[0]:012d}.jpg"


# ---- mistakes ------------------------------------------------------------------------------------------------------------------------


WRONG = [
    (
        VAL_FILE,
        set_field(2, gt_img_ids=[IDS[18], 5]),
        r"val\.json, record 2: picture '5' is not in COCO2017_unlabeled/annotations/image_info",
    ),
    (VAL_FILE, set_field(2, reference_img_id=5), r"val\.json, record 2: picture '5' is not in .*; get both files of one version"),
    (TEST_FILE, set_field(1, reference_img_id=5), r"test\.json, record 1: picture '5' is not in .*; get both files of one version"),
    (VAL_FILE, set_field(2, target_img_id=IDS[0]), r"val\.json, record 2: target_img_id 271520 is not among gt_img_ids \["),
    (VAL_FILE, set_field(2, id=1), r"val\.json, record 2: id 1 is that of record 1, too; get the file again, or take one out"),
    (VAL_FILE, set_field(2, relative_caption=""), r"val\.json, record 2: empty relative_caption; write one, or take the record out"),
    (VAL_FILE, lambda records: [{"pairid": 1, "reference": "dev-1", "caption": "x"}], r"val\.json, record 0: no 'id' \(it has caption, "),
    (TEST_FILE, lambda records: {"images": []}, r"test\.json: a JSON dict, not the list that CIRCO's annotations of test are"),
    (INFO, lambda info: {"annotations": []}, r"image_info_unlabeled2017\.json: a JSON dict without a list 'images', not the list that the"),
    (INFO, lambda info: info["images"], r"image_info_unlabeled2017\.json: a JSON list without a list 'images', not the list that the"),
    (
        INFO,
        lambda info: {"images": [{"id": 4}]},
        r"image_info_unlabeled2017\.json, record 0: no 'file_name' \(it has id\), unlike the pictures",
    ),
    (INFO, lambda info: {"images": [{"id": 4, "file_name": 3}]}, r"image_info_unlabeled2017\.json, record 0: file_name=3, unlike"),
    (
        INFO,
        lambda info: {"images": [*info["images"], info["images"][3]]},
        r"image_info_unlabeled2017\.json, record 56: id 271541 is that of",
    ),
    (
        INFO,
        lambda info: {"images": [{"id": 4, "file_name": "../a.jpg"}]},
        r"unlabeled2017\.json: '\.\./a\.jpg' is no name of a picture in the",
    ),
    (
        INFO,
        lambda info: {"images": [*info["images"], {"id": 4, "file_name": "a" * 5000}]},
        r"path of the file of picture '4' is too long, 5,\d\d\d char",
    ),
]


@pytest.mark.parametrize(("file", "change", "message"), WRONG)
def test_mistakes_in_the_files_are_named(tmp_path: Path, file: str, change: Callable[[Any], Any], message: str):
    edit(write_circo(tmp_path) / file, change)
    with pytest.raises(UserError, match=message):
        ready(tmp_path)


def test_test_annotations_cannot_be_scored(tmp_path: Path):
    shutil.copy(write_circo(tmp_path) / TEST_FILE, tmp_path / VAL_FILE)
    with pytest.raises(UserError, match=r"val\.json, record 0: no 'target_img_id'"):
        ready(tmp_path)


def test_missing_list_of_pictures_is_named(tmp_path: Path):
    (write_circo(tmp_path) / INFO).unlink()
    with pytest.raises(UserError, match=r"circo: no file 'COCO2017_unlabeled/annotations/image_info_unlabeled2017\.json'"):
        ready(tmp_path)


def test_broken_json_is_located(tmp_path: Path):
    (write_circo(tmp_path) / TEST_FILE).write_text('[\n{"id" 1}]')
    with pytest.raises(UserError, match=r"test\.json, line 2, column 7: broken JSON"):
        ready(tmp_path)


def test_a_link_out_of_the_pictures_folder_is_refused(tmp_path: Path):
    picture = write_circo(tmp_path / "circo") / "COCO2017_unlabeled" / "unlabeled2017" / f"{IDS[4]:012d}.jpg"
    picture.rename(tmp_path / "secret.jpg")
    picture.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match=r"000000271548\.jpg is a symbolic link out of its folder, to .*secret\.jpg"):
        ready(tmp_path / "circo")
