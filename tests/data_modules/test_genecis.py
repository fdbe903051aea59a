from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fakes.files import edit, set_field
from fakes.genecis import COCO, DISTRACTORS, QUERIES, SIZE, write_genecis
from PIL import Image

from data_modules.check import check
from data_modules.errors import UserError
from data_modules.genecis import TASKS, GeneCIS
from data_modules.images import cut, load_image
from data_modules.validation import validate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from data_modules.records import EvaluationSet


def ready(root: Path, **options: Any) -> GeneCIS:
    data = GeneCIS(str(root), **options)
    data.setup("test")
    return data


def sets(data: GeneCIS) -> dict[str, EvaluationSet]:
    return {one.name.removeprefix("genecis/"): one for one in data.evaluation_sets("test")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_genecis(tmp_path_factory.mktemp("genecis"))


@pytest.fixture(scope="module")
def data(root: Path) -> GeneCIS:
    return ready(root)


def test_counts_of_the_real_object_tasks(annotations: Path):
    data = GeneCIS(str(annotations / "genecis"), tasks=("focus_object", "change_object"))
    benchmark = data.read()
    validate(benchmark, 60)
    assert data.official == {f"val/{one.name} queries": len(one.queries) for one in benchmark.val}
    assert {one.average for one in benchmark.val} == {"genecis/avg_of_2"}
    for one, twice in zip(benchmark.val, ([], ["19"]), strict=True):
        assert len(one.queries) == 1_960
        assert [query.id for query in one.queries if len(query.members) != 15] == twice  # its target is also among its distractors


# ---- the miniature -------------------------------------------------------------------------------------------------------------------


def test_each_query_ranks_its_own_gallery(data: GeneCIS):
    assert tuple(sets(data)) == TASKS
    for task, one in sets(data).items():
        assert (one.members_only, one.remove_reference, one.recall_at, one.average) == (True, False, (1, 2, 3), "genecis/avg")
        assert len(one.queries) == QUERIES
        assert {len(query.members) for query in one.queries} == {1 + DISTRACTORS[task]}
        assert set(one.gallery) == {name for query in one.queries for name in query.members}
    query = sets(data)["focus_object"].queries[1]
    assert (query.id, query.reference, query.caption, query.targets) == ("1", f"coco/{COCO[1]}", "color", (f"coco/{COCO[2]}",))
    assert query.members == tuple(f"coco/{COCO[3 + at - 1]}" for at in range(15))


def test_there_is_no_test_split(data: GeneCIS):
    assert data.benchmark.test == data.benchmark.hidden == ()
    assert data.scored("test") == "val"


def test_a_picture_that_comes_twice_in_a_gallery_is_ranked_once(tmp_path: Path):
    """The authors' code lets the target win against its own copy."""
    edit(write_genecis(tmp_path) / FOCUS, lambda records: [{**r, "gallery": [r["target"], *r["gallery"][:1] * 3]} for r in records])
    query = sets(ready(tmp_path))["focus_object"].queries[0]
    assert query.members == (f"coco/{COCO[1]}", f"coco/{COCO[2]}")


def test_a_reference_among_the_distractors_stays(tmp_path: Path):
    edit(write_genecis(tmp_path) / FOCUS, lambda records: [{**r, "gallery": [r["reference"], *r["gallery"]]} for r in records])
    one = sets(ready(tmp_path))["focus_object"]
    assert one.queries[0].reference in one.queries[0].members
    assert not one.remove_reference


@pytest.mark.parametrize("folders", [("VG_100K_all",), ("VG_100K", "VG_100K_2")])
def test_layouts(tmp_path: Path, folders: tuple[str, ...]):
    write_genecis(tmp_path)
    files = sorted((tmp_path / "VG_100K_all").iterdir())
    for at, file in enumerate(files):
        folder = tmp_path / folders[at % len(folders)]
        folder.mkdir(exist_ok=True)
        file.rename(folder / file.name)
    for path in (tmp_path / "genecis").iterdir():  # the annotations beside the pictures
        path.rename(tmp_path / path.name)
    data = ready(tmp_path)
    data.require_pictures(range(len(data.pictures)))


def test_missing_pictures_are_named_where_they_should_be(tmp_path: Path):
    root = write_genecis(tmp_path)
    (root / "val2017" / f"{COCO[0]:012d}.jpg").unlink()
    shutil.rmtree(root / "VG_100K_all")
    data = ready(root)
    with pytest.raises(UserError, match=r"19 of 38 picture files .*/VG_100K_all/2366050\.jpg.*cir data check genecis"):
        data.require_pictures(range(len(data.pictures)))


# ---- objects of Visual Genome --------------------------------------------------------------------------------------------------------

W, H = SIZE
BOXES = [  # x, y, width, height of the object; where the authors cut: left, top, right, bottom
    ((12, 10, 8, 6), (6, 6, 20, 16)),  # 12 - 5.6 = 6.4, 10 - 4.2 = 5.8, and 13.6 and 10.2 further
    ((0.0, 1.5, 30.5, 20.25), (0, 0, W, H)),  # 51.85 and 34.4 are beyond the edges
    ((-1, 4, 20, 20), (0, 0, 34, H)),
    ((30, 20, 10, 10), (23, 13, 40, 30)),  # an object in the corner
]


@pytest.mark.parametrize(("bbox", "cropped"), BOXES)
def test_objects_are_cut_out_as_the_authors_do(root: Path, tmp_path: Path, bbox: tuple[float, ...], cropped: tuple[int, ...]):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / ATTRIBUTE, lambda records: [{**r, "target": {"image_id": "2366051", "instance_bbox": bbox}} for r in records[:1]])
    data = ready(tmp_path, tasks=("focus_attribute",))
    name = sets(data)["focus_attribute"].queries[0].targets[0]
    picture = data.pictures[data.picture_index[name]]
    assert name.startswith("vg/2366051/")
    whole = load_image(picture.path)
    part = np.asarray(whole.crop(cropped))
    height, width = part.shape[:2]
    side = max(height, width)
    expected = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    expected[top : top + height, left : left + width] = part
    assert np.array_equal(np.asarray(cut(whole, picture.box)), expected)


def test_a_box_outside_its_picture_is_found_by_the_check_and_named_with_the_file(tmp_path: Path):
    write_genecis(tmp_path)
    file, box = tmp_path / "VG_100K_all" / "2366050.jpg", (893, 898, 910, 903)
    edit(tmp_path / ATTRIBUTE, set_field(1, target={"image_id": "2366050", "instance_bbox": [900, 900, 10, 3]}))
    unreadable = check(GeneCIS(str(tmp_path))).unreadable or {}
    assert list(unreadable) == [file]
    sentence = f"box {box} is not in its picture of 40 x 30 pixels; use the picture that the box is of"
    assert unreadable[file] == sentence
    with pytest.raises(UserError) as refusal:
        load_image(file, box)
    assert str(refusal.value) == f"{file}: {sentence}"


def test_a_box_outside_its_picture_is_refused():
    with pytest.raises(UserError, match=r"box \(50, 0, 60, 10\) is not in its picture of 40 x 30 pixels"):
        cut(Image.new("RGB", SIZE), (50, 0, 60, 10))


# ---- mistakes ------------------------------------------------------------------------------------------------------------------------

FOCUS, ATTRIBUTE = "genecis/focus_object.json", "genecis/focus_attribute.json"


WRONG = [
    (FOCUS, set_field(2, target={"image_id": 5}), r"record 2: no pictures of focus_object \(KeyError\('val_image_id'\)\)"),
    (ATTRIBUTE, set_field(1, reference={"val_image_id": 5}), r"focus_attribute\.json, record 1: no pictures of focus_attribute"),
    (ATTRIBUTE, set_field(1, target={"image_id": "5", "instance_bbox": [1, 2, 3]}), r"no pictures of focus_attribute \(ValueError"),
    (ATTRIBUTE, set_field(1, target={"image_id": "../../x", "instance_bbox": [1, 2, 3, 4]}), r"record 1: no pictures .* \(ValueError"),
    (ATTRIBUTE, set_field(1, target={"image_id": "5", "instance_bbox": [1, 2, float("inf"), 4]}), r"record 1: .* \(OverflowError"),
    (FOCUS, set_field(1, target={"val_image_id": float("inf")}), r"record 1: no pictures of focus_object \(ValueError"),
    (FOCUS, set_field(1, target={"val_image_id": 13.9}), r"record 1: no pictures of focus_object \(ValueError.*'13\.9'"),
    (FOCUS, set_field(1, target={"val_image_id": True}), r"record 1: no pictures of focus_object \(ValueError.*'True'"),
    (ATTRIBUTE, set_field(1, target={"image_id": 5.5, "instance_bbox": [1, 2, 3, 4]}), r"record 1: no pictures .* \(ValueError.*'5\.5'"),
    (FOCUS, set_field(1, gallery=["x"]), r"record 1: no pictures of focus_object \(TypeError"),
    (FOCUS, set_field(1, condition=""), r"focus_object\.json, record 1: empty condition; write one"),
    (FOCUS, lambda records: [{"pairid": 5}], r"focus_object\.json, record 0: no 'reference' \(it has pairid\)"),
]


@pytest.mark.parametrize(("file", "change", "message"), WRONG)
def test_mistakes_in_the_files_are_named(tmp_path: Path, file: str, change: Callable[[Any], Any], message: str):
    edit(write_genecis(tmp_path) / file, change)
    with pytest.raises(UserError, match=message):
        ready(tmp_path)


def test_absent_task_is_named_and_can_be_left_out(tmp_path: Path):
    (write_genecis(tmp_path) / ATTRIBUTE).unlink()
    with pytest.raises(UserError, match=r"genecis: no file 'genecis/focus_attribute\.json' .* or leave the task out with --data\.tasks"):
        ready(tmp_path)
    data = ready(tmp_path, tasks=("focus_object", "change_object", "change_attribute"))
    assert {one.average for one in data.evaluation_sets("val")} == {"genecis/avg_of_3"}


@pytest.mark.parametrize("tasks", [(), ("focus_object", "focus_object")])
def test_tasks_are_distinct_and_at_least_one(tasks: tuple[Any, ...]):
    with pytest.raises(UserError, match=r"data\.tasks is \(.*set --data\.tasks to some of focus_attribute, .*, each once"):
        GeneCIS(tasks=tasks)


def test_broken_json_is_located(tmp_path: Path):
    (write_genecis(tmp_path) / FOCUS).write_text("[{]")
    with pytest.raises(UserError, match=r"focus_object\.json, line 1, column 3: broken JSON"):
        ready(tmp_path)


def test_a_link_out_of_the_data_sets_folder_is_refused(tmp_path: Path):
    picture = write_genecis(tmp_path / "genecis") / "val2017" / f"{COCO[0]:012d}.jpg"
    picture.rename(tmp_path / "secret.jpg")
    picture.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match=r"000000000139\.jpg is a symbolic link out of its folder, to .*secret\.jpg"):
        ready(tmp_path / "genecis")
