"""Shoes: on a miniature in the real layout, and against the real annotation files where they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fakes.files import edit, set_field
from fakes.shoes import EVAL, PAIRS, TRAIN, write_shoes

from cir_lightning.retrieval.ranking import rank
from data_modules.errors import UserError
from data_modules.shoes import Shoes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def miniature(tmp_path: Path) -> Path:
    write_shoes(tmp_path)
    return tmp_path


def ready(root: Path, **options: Any) -> Shoes:
    data = Shoes(str(root), **options)
    data.setup()
    return data


def test_a_triplet_belongs_to_the_split_of_its_pictures(miniature: Path):
    data = ready(miniature)
    assert [(triplet.reference, triplet.target) for triplet in data.triplets] == [pair for pair in PAIRS if pair[0] in TRAIN]
    (one,) = data.benchmark.val
    assert [(query.reference, *query.targets) for query in one.queries] == [pair for pair in PAIRS if pair[0] in EVAL]
    assert data.triplets[0].caption == "is red"
    assert {triplet.group for triplet in data.triplets} == {"womens_athletic_shoes", "womens_pumps"}
    assert all(triplet.group in triplet.target for triplet in data.triplets)


def test_protocol(miniature: Path):
    data = ready(miniature)
    (one,) = data.evaluation_sets("val")
    assert one.name == "shoes"
    assert one.gallery == tuple(EVAL)
    assert one.remove_reference
    assert one.recall_at == (1, 10, 50)
    assert one.mean_of == ("R@1", "R@10", "R@50")
    assert [[figure for figure, _ in paper.figures] for paper in one.published] == [["R@1", "R@10", "R@50"]] * 3
    assert data.evaluation_sets("test") == data.evaluation_sets("predict") == (one,)
    assert data.scored("test") == "val"


def test_a_target_that_is_the_reference_is_counted_as_unreachable(miniature: Path):
    (one,) = ready(miniature).benchmark.val
    vectors = torch.nn.functional.normalize(torch.randn(len(EVAL), 8, generator=torch.Generator().manual_seed(0)))
    queries = vectors[[EVAL.index(query.targets[0]) for query in one.queries]]
    ranking = rank(queries, vectors, one)
    assert ranking.unreachable == 1
    assert ranking.ranks.tolist() == [1] * (len(one.queries) - 1) + [len(EVAL) + 1]


@pytest.mark.parametrize(("images", "flat"), [("attributedata", False), ("images", False), ("images", True), (".", False)])
def test_layouts(tmp_path: Path, images: str, *, flat: bool):
    write_shoes(tmp_path, images, flat=flat)
    data = ready(tmp_path)
    assert {picture.name for picture in data.pictures} == {*EVAL, *(name for pair in PAIRS for name in pair)}
    assert all(picture.path.is_file() and picture.path.name == picture.name for picture in data.pictures)


def test_missing_pictures_are_named_where_they_should_be(miniature: Path):
    (miniature / "attributedata" / "womens_athletic_shoes" / "0" / TRAIN[0]).unlink()
    data = ready(miniature)
    first = rf"attributedata/womens_athletic_shoes/0/{TRAIN[0]}"
    with pytest.raises(UserError, match=rf"1 of \d+ picture files do not exist, the first of them .*{first}; .* cir data check shoes"):
        data.require_pictures(range(len(data.pictures)))


CAPTIONS = "relative_captions_shoes.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field(4, ImageName=EVAL[0]), rf"{CAPTIONS}, record 4: pictures .* and '{EVAL[0]}' are not both in train_im_names\.txt or"),
        (set_field(4, ImageName="img_womens_pumps_999.jpg"), r"record 4: pictures .* and 'img_womens_pumps_999\.jpg' are not both in"),
        (set_field(2, RelativeCaption=" "), rf"{CAPTIONS}, record 2: empty RelativeCaption; write one, or take the record out"),
        (set_field(2, RelativeCaption=None), r"record 2: RelativeCaption=None, unlike Shoes captions"),
        (
            lambda _: [{"target": "B0", "candidate": "B1", "captions": []}],
            r"record 0: no 'ReferenceImageName' \(it has candidate, captions, target\)",
        ),
    ],
)
def test_captions_that_are_not_as_they_should_be(miniature: Path, change: Any, message: str):
    edit(miniature / CAPTIONS, change)
    with pytest.raises(UserError, match=message):
        ready(miniature)


def test_a_name_twice_in_a_list(miniature: Path):
    (miniature / "eval_im_names.txt").write_text("\n".join([*EVAL, EVAL[7]]))
    with pytest.raises(UserError, match=rf"eval_im_names\.txt: the name '{EVAL[7]}' comes twice"):
        ready(miniature)


def test_a_list_that_is_no_text(miniature: Path):
    (miniature / "train_im_names.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"train_im_names\.txt: byte 0 is not UTF-8"):
        ready(miniature)


def test_broken_json(miniature: Path):
    (miniature / CAPTIONS).write_text('[{"ImageName": "a.jpg",\n "ReferenceImageName" "b.jpg"}]')
    with pytest.raises(UserError, match=rf"{CAPTIONS}, line 2, column 23: broken JSON \(Expecting ':' delimiter\)"):
        ready(miniature)


@pytest.mark.parametrize("name", ["../../secret.jpg", "/tmp/secret.jpg"])
def test_a_name_that_leads_out_of_the_folder(miniature: Path, name: str):
    (miniature / "eval_im_names.txt").write_text("\n".join([*EVAL, name]))
    with pytest.raises(UserError, match=rf"eval_im_names\.txt: '{name}' is no name of a picture in the data set's folder; get the file"):
        ready(miniature)


@pytest.mark.parametrize("file", [CAPTIONS, "train_im_names.txt", "eval_im_names.txt"])
def test_a_missing_file(miniature: Path, file: str):
    (miniature / file).unlink()
    with pytest.raises(UserError, match=rf"shoes: no file '{file}' under root='.*'; set --data\.root .* cir data download shoes"):
        ready(miniature)


def test_a_picture_outside_the_folder(miniature: Path, tmp_path_factory: pytest.TempPathFactory):
    picture = miniature / "attributedata" / "womens_athletic_shoes" / "0" / TRAIN[0]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.jpg"
    picture.rename(elsewhere)
    picture.symlink_to(elsewhere)
    with pytest.raises(UserError, match=rf"{TRAIN[0]} is a symbolic link out of its folder, to .*secret\.jpg"):
        ready(miniature)


# ---- the real files --------------------------------------------------------------------------------------------------------------


def test_counts_of_the_real_files(annotations: Path):
    data = ready(annotations / "shoes")
    (one,) = data.benchmark.val
    assert (len(data.triplets), len(one.queries), len(one.gallery)) == (8_990, 1_761, 4_658)
    assert data.official == {"train triplets": 8_990, "val/shoes queries": 1_761, "val/shoes gallery": 4_658}
    assert [query.caption for query in one.queries if query.reference in query.targets] == ["is identical"]
    raw = json.loads((annotations / "shoes" / CAPTIONS).read_text())
    known = {(record["ReferenceImageName"], record["RelativeCaption"], record["ImageName"]) for record in raw}
    assert {(query.reference, query.caption, query.targets[0]) for query in one.queries} <= known
