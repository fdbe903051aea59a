from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from fakes.cirr import EMPTY, write_cirr
from fakes.files import edit, set_field

from data_modules.cirr import CIRR
from data_modules.errors import UserError
from data_modules.records import Submission, Triplet
from data_modules.validation import validate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from data_modules.records import Benchmark


def ready(root: Path) -> CIRR:
    data = CIRR(str(root))
    data.setup()
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cirr(tmp_path_factory.mktemp("cirr"))


@pytest.fixture(scope="module")
def data(root: Path) -> CIRR:
    return ready(root)


# ---- the real files ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """The real annotation files; the official train file has more fields than the one that is there."""
    root = tmp_path_factory.mktemp("real cirr")
    shutil.copytree(annotations / "cirr", root, dirs_exist_ok=True)
    captions = root / "captions"
    next(captions.glob("cap.rc2.train*.json")).rename(captions / "cap.rc2.train.json")
    return CIRR(str(root)).read()


def test_counts_are_those_of_the_benchmark(real: Benchmark):
    validate(real, 60)
    (val,), (recall, subset) = real.val, real.hidden
    counts = {"train triplets": len(real.triplets)}
    for name, one in (("val/cirr", val), ("hidden/cirr", recall), ("hidden/cirr/subset", subset)):
        counts |= {f"{name} queries": len(one.queries), f"{name} gallery": len(one.gallery)}
    assert counts == CIRR().official
    assert list(counts.values()) == [28_225, 4_181, 2_297, 4_148, 2_315, 4_148, 2_315]
    assert len(real.pictures) == 16_939 + 2_297 + 2_315
    assert Counter(len(query.members) for query in (*val.queries, *recall.queries)) == {6: 4_181 + 4_148}
    asked = {name for query in val.queries for name in (query.reference, *query.targets)}
    assert len(asked) == 2_265


def test_the_one_query_without_a_caption_is_kept(real: Benchmark):
    assert [query.id for query in real.hidden[0].queries if not query.caption] == [EMPTY]


# ---- the miniature -------------------------------------------------------------------------------------------------------------------


def test_val_is_scored_in_the_split_without_the_reference_and_in_the_image_set(data: CIRR):
    (val,) = data.evaluation_sets("test")
    assert (val.name, val.remove_reference, val.members_only, val.submission) == ("cirr", True, False, None)
    assert (val.recall_at, val.subset_recall_at, val.mean_of) == ((1, 5, 10, 50), (1, 2, 3), ("R@5", "R_subset@1"))
    assert len(val.gallery) == 54
    query = val.queries[3]
    assert (query.id, query.reference, query.targets) == ("111", "dev-1-0-img1", ("dev-1-1-img0",))
    assert query.members == tuple(f"dev-1-{at // 2}-img{at % 2}" for at in range(6))
    assert data.scored("test") == "val"
    assert val.published == ()


def test_test1_is_predicted_for_the_server(data: CIRR):
    recall, subset = data.evaluation_sets("predict")
    version = ("version", "rc2")
    assert recall.submission == Submission("cirr_recall.json", 50, (version, ("metric", "recall")))
    assert subset.submission == Submission("cirr_recall_subset.json", 3, (version, ("metric", "recall_subset")))
    assert (subset.name, subset.members_only, subset.remove_reference) == ("cirr/subset", True, True)
    assert recall.queries == subset.queries
    assert all(query.targets == () for query in recall.queries)
    assert recall.queries[-1].id == EMPTY
    assert recall.queries[-1].caption == ""


def test_triplets_are_grouped_by_image_set(data: CIRR):
    assert data.triplets[10] == Triplet("train-1-0-img1", "Make it picture 2 of set 1", "train-1-1-img0", "1")
    assert Counter(triplet.group for triplet in data.triplets) == dict.fromkeys("0123", 9)


def test_a_train_file_with_the_needed_fields_alone_has_no_groups(tmp_path: Path):
    edit(write_cirr(tmp_path) / TRAIN, lambda records: [{key: r[key] for key in ("reference", "target_hard", "caption")} for r in records])
    assert {triplet.group for triplet in ready(tmp_path).triplets} == {""}


@pytest.mark.parametrize(
    ("annotations_in", "pictures_in", "numbered"),
    [
        (".", "img_raw", True),
        (".", "images", True),
        ("cirr", ".", True),
        ("cirr_dataset/cirr", "cirr_dataset", True),
        (".", "img_raw", False),
    ],
)
def test_layouts(tmp_path: Path, annotations_in: str, pictures_in: str, numbered: bool):  # noqa: FBT001
    write_cirr(tmp_path, annotations_in, pictures_in, numbered=numbered)
    data = ready(tmp_path)
    data.require_pictures(range(len(data.pictures)))
    assert data.pictures[6].path == tmp_path / pictures_in / ("train/1" if numbered else "train") / "train-1-0-img0.png"


def test_all_pictures_in_one_folder(tmp_path: Path):
    write_cirr(tmp_path, pictures="elsewhere")
    (tmp_path / "images").mkdir()
    for path in (tmp_path / "elsewhere").rglob("*.png"):
        path.rename(tmp_path / "images" / path.name)
    data = ready(tmp_path)
    data.require_pictures(range(len(data.pictures)))


def test_missing_pictures_are_named_where_they_should_be(tmp_path: Path):
    root = write_cirr(tmp_path)
    shutil.rmtree(root / "img_raw" / "train" / "2")
    data = ready(root)
    with pytest.raises(UserError, match=r"6 of 132 picture files .*/img_raw/train/2/train-2-0-img0\.png.*cir data check cirr --root"):
        data.require_pictures(range(len(data.pictures)))


# ---- mistakes ------------------------------------------------------------------------------------------------------------------------

TRAIN, VAL, TEST1 = (f"captions/cap.rc2.{split}.json" for split in ("train", "val", "test1"))
SPLIT = "image_splits/split.rc2.val.json"


IMAGE_SET = {"id": 0, "members": [f"dev-0-{at // 2}-img{at % 2}" for at in range(6) if at != 1]}
WRONG = [
    (TRAIN, set_field(3, target_hard="dev-0-0-img0"), r"cap\.rc2\.train\.json, record 3: 'dev-0-0-img0' is no picture of the split train"),
    (VAL, set_field(0, reference="train-0-0-img0"), r"cap\.rc2\.val\.json, record 0: 'train-0-0-img0' is no picture of the split val"),
    (VAL, set_field(1, pairid=100), r"query id of val/cirr '100' is not unique"),
    (VAL, set_field(0, img_set=IMAGE_SET), r"query '100' of val/cirr has members without its reference or its first target"),
    (VAL, set_field(2, img_set={"id": 3}), r"cap\.rc2\.val\.json, record 2: img_set has no list 'members'"),
    (VAL, set_field(0, img_set={"id": 3, "members": [*IMAGE_SET["members"], "x"]}), r"'x', which its gallery does not have"),
    (VAL, set_field(4, caption=" "), r"empty caption in query '120' of val/cirr"),
    (TRAIN, set_field(4, caption=""), r"empty caption in training triplet 4"),
    (VAL, lambda _: [{"target": "B005", "candidate": "B006", "captions": []}], r"record 0: no 'reference' \(it has candidate, captions, "),
    (VAL, lambda records: {"data": records}, r"cap\.rc2\.val\.json: a JSON dict, not the list that CIRR's captions of val are"),
    (SPLIT, list, r"split\.rc2\.val\.json: not a JSON object of names and paths, as CIRR's split files are"),
]


@pytest.mark.parametrize(("file", "change", "message"), WRONG)
def test_mistakes_in_the_files_are_named(tmp_path: Path, file: str, change: Callable[[Any], Any], message: str):
    edit(write_cirr(tmp_path) / file, change)
    with pytest.raises(UserError, match=message):
        ready(tmp_path)


def test_broken_json_is_located(tmp_path: Path):
    (write_cirr(tmp_path) / VAL).write_text('[{"pairid": 1,\n "reference": }]')
    with pytest.raises(UserError, match=r"cap\.rc2\.val\.json, line 2, column 15: broken JSON"):
        ready(tmp_path)


def test_a_name_twice_in_a_split_is_refused(tmp_path: Path):
    (write_cirr(tmp_path) / SPLIT).write_text('{"dev-0": "./dev/dev-0.png", "dev-0": "./dev/dev-1.png"}')
    with pytest.raises(UserError, match=r"split\.rc2\.val\.json: the key 'dev-0' comes twice in one object; get the file again"):
        ready(tmp_path)


def test_missing_file_is_named(tmp_path: Path):
    (write_cirr(tmp_path) / TEST1).unlink()
    with pytest.raises(UserError, match=r"cirr: no file 'captions/cap\.rc2\.test1\.json' .*set --data\.root"):
        ready(tmp_path)


def test_another_version_is_refused(tmp_path: Path):
    file = write_cirr(tmp_path) / VAL
    file.rename(file.with_name("cap.rc1.val.json"))
    with pytest.raises(UserError, match=r"cap\.rc1\.val\.json is of another version of CIRR, and figures are of rc2"):
        ready(tmp_path)


def test_a_link_out_of_the_pictures_folder_is_refused(tmp_path: Path):
    picture = write_cirr(tmp_path / "cirr") / "img_raw" / "dev" / "dev-0-0-img0.png"
    picture.rename(tmp_path / "secret.png")
    picture.symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"dev-0-0-img0\.png is a symbolic link out of its folder, to .*secret\.png"):
        ready(tmp_path / "cirr")
