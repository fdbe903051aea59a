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


def members(which: str) -> Callable[[Any], Any]:
    """A change of the first record's image set to members by number; there are none but the first six."""

    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        image_set = records[0]["img_set"]["members"]
        prefix = image_set[0].partition("-")[0]
        named = [image_set[int(at)] if at in "012345" else f"{prefix}-{at}" for at in which]
        return set_field(0, img_set={"id": 0, "members": named})(records)

    return change


WRONG = [
    (TRAIN, set_field(3, target_hard="dev-0-0-img0"), r"cap\.rc2\.train\.json, record 3: 'dev-0-0-img0' is no picture of the split train"),
    (VAL, set_field(0, reference="train-0-0-img0"), r"cap\.rc2\.val\.json, record 0: 'train-0-0-img0' is no picture of the split val"),
    (VAL, set_field(1, pairid=100), r"val\.json, record 1: pairid 100 is that of record 0, too; get the file again, or take one out"),
    (VAL, members("023456"), r"val\.json, record 0: img_set has not 'dev-0-0-img1', the reference or the target, among its members; get"),
    (TEST1, members("123456"), r"test1\.json, record 0: img_set has not 'test1-0-0-img0', the reference"),
    (TEST1, members("0123"), r"test1\.json, record 0: img_set has 4 members, 4 of them different, and not 6 different ones; get both"),
    (VAL, members("0123456"), r"val\.json, record 0: img_set has 7 members, 7 of them different, and not 6"),
    (VAL, members("012344"), r"val\.json, record 0: img_set has 6 members, 5 of them different, and not 6"),
    (VAL, members("01234x"), r"val\.json, record 0: img_set has the member 'dev-x', which is no picture of the split; get both files"),
    (VAL, set_field(2, img_set={"id": 3}), r"cap\.rc2\.val\.json, record 2: img_set has the members None, not a list of names"),
    (VAL, set_field(2, img_set={"members": ["a", 1, "b"]}), r"record 2: img_set has the members \['a', 1, 'b'\], not a list of names"),
    (VAL, set_field(2, img_set={"members": [["a"]]}), r"record 2: img_set has the members \[\['a'\]\], not a list of names"),
    (TRAIN, set_field(2, img_set=None), r"train\.json, record 2: img_set=None, unlike CIRR's captions of train"),
    (TRAIN, set_field(2, img_set=[]), r"train\.json, record 2: img_set=\[\], unlike"),
    (TRAIN, set_field(2, img_set={"id": [1]}), r"train\.json, record 2: img_set has the id \[1\], not a number"),
    (TEST1, set_field(2, target_hard=["a"]), r"test1\.json, record 2: target_hard=\['a'\], unlike"),
    (VAL, set_field(4, caption=" "), r"val\.json, record 4: empty caption; write one, or take the record out"),
    (TRAIN, set_field(4, caption=""), r"train\.json, record 4: empty caption; write one"),
    (VAL, set_field(4, caption="cut \ud83d"), r"val\.json, record 4: caption='cut \\ud83d' has a NUL or half of a character; get the"),
    (SPLIT, lambda paths: {**paths, "../secret": "./dev/secret.png"}, r"split\.rc2\.val\.json: '\.\./secret' is no name of a picture in"),
    (SPLIT, lambda paths: {**paths, "x": "/tmp/x.png"}, r"split\.rc2\.val\.json: '/tmp/x\.png' is no name of a picture in the data set's"),
    (SPLIT, lambda paths: {**paths, "x": ".//tmp/x.png"}, r"split\.rc2\.val\.json: '\.//tmp/x\.png' is no name of a picture"),
    (SPLIT, lambda paths: {**paths, "x": "./dev/../../x.png"}, r"split\.rc2\.val\.json: '\./dev/\.\./\.\./x\.png' is no name of"),
    (SPLIT, lambda paths: {**paths, "x" * 5000: "./dev/x.png"}, r"path of the file of picture 'x{40}' is too long, 5,\d\d\d characters"),
    (SPLIT, lambda paths: {**paths, "x": f"./{'x' * 5000}/x.png"}, r"path of the file of picture 'x' is too long, 5,\d\d\d characters"),
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


def test_a_folder_in_place_of_a_file_is_not_another_version(tmp_path: Path):
    file = write_cirr(tmp_path) / VAL
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"cirr: no file 'captions/cap\.rc2\.val\.json' .*set --data\.root"):
        ready(tmp_path)


def test_a_link_to_itself_is_a_missing_picture(tmp_path: Path):
    picture = write_cirr(tmp_path) / "img_raw" / "dev" / "dev-0-0-img0.png"
    picture.unlink()
    picture.symlink_to(picture.name)
    data = ready(tmp_path)
    with pytest.raises(UserError, match=r"1 of 132 picture files do not exist, .*/dev-0-0-img0\.png"):
        data.require_pictures(range(len(data.pictures)))


def test_a_link_out_of_the_pictures_folder_is_refused(tmp_path: Path):
    picture = write_cirr(tmp_path / "cirr") / "img_raw" / "dev" / "dev-0-0-img0.png"
    picture.rename(tmp_path / "secret.png")
    picture.symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"dev-0-0-img0\.png is a symbolic link out of its folder, to .*secret\.png"):
        ready(tmp_path / "cirr")
