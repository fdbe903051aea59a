"""Fashion-IQ: on a miniature in the real layout, and against the real annotation files where they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fakes.fashioniq import CATEGORIES, picture_names, records, write_fashioniq
from fakes.files import edit, set_field, write_json
from jsonargparse import ArgumentParser

from data_modules.base import CIRDataModule
from data_modules.errors import UserError
from data_modules.fashioniq import FashionIQ

if TYPE_CHECKING:
    from collections.abc import Callable

    from data_modules.records import EvaluationSet


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fashioniq")
    write_fashioniq(root)
    return root


@pytest.fixture
def own(miniature: Path, tmp_path: Path) -> Path:
    """The annotation files alone, to change."""
    for folder in ("captions", "image_splits"):
        shutil.copytree(miniature / folder, tmp_path / folder)
    return tmp_path


def ready(root: Path, **options: Any) -> FashionIQ:
    data = FashionIQ(str(root), **options)
    data.setup()
    return data


def sets(data: FashionIQ) -> dict[str, EvaluationSet]:
    return {one.name: one for one in (*data.benchmark.val, *data.benchmark.hidden)}


# ---- protocols -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "gallery", "remove_reference"), [("original", 60, False), ("original-noref", 60, True), ("val", 54, True)]
)
@pytest.mark.parametrize("category", CATEGORIES)
def test_protocols(miniature: Path, protocol: str, gallery: int, category: str, *, remove_reference: bool):
    one = sets(ready(miniature))[f"fashioniq/{protocol}/{category}"]
    named = {record[role] for record in records(category, "val") for role in ("candidate", "target")}
    assert set(one.gallery) == (named if protocol == "val" else set(picture_names(category, "val")))
    assert len(one.gallery) == gallery
    assert one.remove_reference is remove_reference
    assert one.average == f"fashioniq/{protocol}/avg"
    assert one.mean_of == ("R@10", "R@50")
    assert {"R@10", "R@50"} <= {f"R@{k}" for k in one.recall_at}
    assert one.protocol.startswith(f"{protocol}: ")
    assert [(query.reference, query.targets) for query in one.queries] == [
        (record["candidate"], (record["target"],)) for record in records(category, "val")
    ]


def test_queries_and_pictures_are_shared_by_the_protocols(miniature: Path):
    data = ready(miniature)
    assert len(data.benchmark.val) == 9
    assert len(data.distinct_queries("val")) == 3 * 27
    assert len(data.gallery_pictures("val")) == 60 + 60 + 30  # half of toptee's are shirt's


def test_answers_of_test_are_secret(miniature: Path):
    data = ready(miniature)
    assert data.evaluation_sets("test") == data.evaluation_sets("val")
    assert data.scored("test") == "val"
    hidden = data.evaluation_sets("predict")
    assert [one.name for one in hidden] == [f"fashioniq/test/{category}" for category in CATEGORIES]
    assert all(len(one.queries) == 12 and len(one.gallery) == 52 and not one.submission for one in hidden)
    assert not any(query.targets for one in hidden for query in one.queries)


def test_published_figures_are_those_of_the_original_protocol(miniature: Path):
    found = sets(ready(miniature))
    means = {"SPRC": (54.72, 74.97), "CIR-LVLM": (56.21, 76.14), "ReCALL": (57.04, 76.42)}  # as printed
    for method, printed in means.items():
        per_category = [
            dict(paper.figures) for c in CATEGORIES for paper in found[f"fashioniq/original/{c}"].published if paper.method == method
        ]
        for key, mean in zip(("R@10", "R@50"), printed, strict=True):
            assert sum(figures[key] for figures in per_category) / 3 == pytest.approx(mean, abs=0.011)
    assert not any(one.published for name, one in found.items() if "/original/" not in name)


def test_training_triplets(miniature: Path):
    data = ready(miniature)
    assert [(t.reference, t.target, t.group) for t in data.triplets] == [
        (record["candidate"], record["target"], category) for category in CATEGORIES for record in records(category, "train")
    ]
    used = {name for triplet in data.triplets for name in (triplet.reference, triplet.target)}
    assert {data.pictures[at].name for at in data.train_pictures()} == used


# ---- captions --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("captions", "caption", "wordings"),
    [
        (
            ["Is red.", " has, a collar? "],
            "Is red and has, a collar",
            ("Is red and has, a collar", "has, a collar and Is red", "Is red", "has, a collar"),
        ),
        (["", "is an off the shoulder top"], "is an off the shoulder top", ()),
        (["Darker and not as shiny", "."], "Darker and not as shiny", ()),
    ],
)
def test_wording(own: Path, captions: list[str], caption: str, wordings: tuple[str, ...]):
    for split in ("train", "val", "test"):
        edit(own / "captions" / f"cap.dress.{split}.json", set_field(0, captions=captions))
    data = ready(own)
    assert data.triplets[0].caption == caption
    assert data.triplets[0].wordings == wordings
    assert {one.queries[0].caption for name, one in sets(data).items() if name.endswith("dress")} == {caption}


# ---- layouts and arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "by_category"), [("images", False), ("resized_images", False), ("images", True), (".", True)])
def test_layouts(tmp_path: Path, images: str, *, by_category: bool):
    write_fashioniq(tmp_path, images, by_category=by_category)
    data = ready(tmp_path)
    assert all(picture.path.is_file() for picture in data.pictures)
    assert {picture.path.suffix for picture in data.pictures} == {".png", ".jpg"}
    data.require_pictures(range(len(data.pictures)))


def test_missing_pictures_are_named_where_they_should_be(own: Path):
    data = ready(own)
    message = rf"picture files do not exist, the first of them {own / 'images' / data.pictures[0].name}\.png.* cir data check fashioniq"
    with pytest.raises(UserError, match=message):
        data.require_pictures(range(len(data.pictures)))


def test_skipped_pictures_are_counted_under_every_protocol(tmp_path: Path):
    write_fashioniq(tmp_path)
    target = records("dress", "val")[0]["target"]
    next(tmp_path.glob(f"images/{target}.*")).unlink()
    data = ready(tmp_path, missing="skip")
    counts = {one.name: (one.skipped_queries, one.skipped_pictures, len(one.queries)) for one in data.benchmark.val}
    assert counts == {name: (1, 1, 26) if name.endswith("dress") else (0, 0, 27) for name in counts}


def test_categories(miniature: Path):
    data = ready(miniature, categories=("toptee", "dress"))
    assert {triplet.group for triplet in data.triplets} == {"dress", "toptee"}
    assert [one.name for one in data.benchmark.hidden] == ["fashioniq/test/dress", "fashioniq/test/toptee"]
    assert {one.average for one in data.benchmark.val} == {""}


@pytest.mark.parametrize("categories", [("hat",), (), ("dress", "Shirt")])
def test_unknown_categories_are_refused(categories: Any):
    with pytest.raises(UserError, match=r"data\.categories is \(.*\); set --data\.categories to one or more of dress, shirt, toptee"):
        FashionIQ(categories=categories)


def test_the_command_line_can_build_it():
    parser = ArgumentParser()
    parser.add_subclass_arguments(CIRDataModule, "data")
    arguments = ["--data=data_modules.fashioniq.FashionIQ", "--data.root=pictures", "--data.categories=[dress,shirt]"]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert (data.root, data.categories, data.transform) == (Path("pictures"), ("dress", "shirt"), "pad")


# ---- bad input -------------------------------------------------------------------------------------------------------------------

CIRR = [{"pairid": 1, "reference": "dev-1", "target_hard": "dev-2", "caption": "red", "img_set": {}}]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "captions/cap.dress.val.json",
            lambda _: CIRR,
            r"cap\.dress\.val\.json, record 0: no 'candidate' \(it has caption, .*\), unlike Fashion-IQ captions; is it the file",
        ),
        (
            "captions/cap.shirt.train.json",
            lambda found: [{key: value for key, value in record.items() if key != "target"} for record in found],
            r"cap\.shirt\.train\.json, record 0: no 'target'",
        ),
        (
            "captions/cap.toptee.train.json",
            set_field(3, captions=["is red"]),
            r"cap\.toptee\.train\.json, record 3: captions=\['is red'\] are not two sentences",
        ),
        (
            "captions/cap.toptee.train.json",
            set_field(3, captions=["is red", "\ud83d"]),
            r"record 3: captions=\['is red', '\\ud83d'\] are not",
        ),
        ("captions/cap.toptee.train.json", set_field(3, captions=["is red", 5]), r"record 3: captions=\['is red', 5\] are not two"),
        (
            "captions/cap.dress.train.json",
            set_field(2, captions=[" .", ""]),
            r"cap\.dress\.train\.json, record 2: both captions are empty; write one, or take the record out",
        ),
        (
            "captions/cap.dress.val.json",
            set_field(5, target="B0DR000001"),
            r"cap\.dress\.val\.json, record 5: picture 'B0DR000001' is not in .*split\.dress\.val\.json; get both files of one version",
        ),
        ("captions/cap.dress.val.json", set_field(5, target=""), r"cap\.dress\.val\.json, record 5: empty target; write one, or take"),
        ("captions/cap.dress.test.json", set_field(5, target=["a"]), r"cap\.dress\.test\.json, record 5: target=\['a'\], unlike"),
        (
            "image_splits/split.shirt.val.json",
            lambda names: [*names, "../../secret"],
            r"split\.shirt\.val\.json: '\.\./\.\./secret' is no name of a picture in the data set's folder; get the file again, or mend it",
        ),
        ("image_splits/split.shirt.val.json", lambda names: [*names, "/secret"], r"split\.shirt\.val\.json: '/secret' is no name of"),
        ("image_splits/split.shirt.val.json", lambda names: [*names, ""], r"split\.shirt\.val\.json: '' is no name of a picture"),
        ("captions/cap.dress.test.json", set_field(1, candidate="B0DA000001"), r"cap\.dress\.test\.json, record 1: picture 'B0DA000001'"),
        (
            "image_splits/split.shirt.val.json",
            lambda names: [*names, names[4]],
            r"split\.shirt\.val\.json: the name 'B0SA000004' comes twice",
        ),
        ("image_splits/split.shirt.val.json", lambda _: {"a": 1}, r"split\.shirt\.val\.json: not a JSON list of names"),
    ],
)
def test_annotations_that_are_not_as_they_should_be(own: Path, file: str, change: Callable[[Any], Any], message: str):
    edit(own / file, change)
    with pytest.raises(UserError, match=message):
        ready(own)


def test_broken_json(own: Path):
    file = own / "captions" / "cap.shirt.val.json"
    file.write_text('[\n    {"target": "B0",\n     "candidate": }\n]')
    with pytest.raises(UserError, match=r"cap\.shirt\.val\.json, line 3, column 19: broken JSON \(Expecting value\)"):
        ready(own)


def test_a_missing_file(own: Path):
    (own / "image_splits" / "split.toptee.test.json").unlink()
    message = (
        r"fashioniq: no file 'image_splits/split\.toptee\.test\.json' under root='.*'; set --data\.root .* cir data download fashioniq"
    )
    with pytest.raises(UserError, match=message):
        ready(own)


def test_a_picture_outside_the_folder(tmp_path: Path):
    write_fashioniq(tmp_path / "data")
    picture = tmp_path / "data" / "images" / "B0DA000000.jpg"
    picture.rename(tmp_path / "secret.jpg")
    picture.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match=r"B0DA000000\.jpg is a symbolic link out of its folder, to .*secret\.jpg; copy the picture there"):
        ready(tmp_path / "data")


# ---- the real files --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(annotations: Path) -> FashionIQ:
    return ready(annotations / "fashioniq")


def test_counts_of_the_real_files(real: FashionIQ):
    counts = {"train triplets": len(real.triplets)}
    counts |= {f"train/{c} triplets": sum(triplet.group == c for triplet in real.triplets) for c in CATEGORIES}
    for split, found in (("val", real.benchmark.val), ("hidden", real.benchmark.hidden)):
        counts |= {f"{split}/{one.name} queries": len(one.queries) for one in found}
        counts |= {f"{split}/{one.name} gallery": len(one.gallery) for one in found}
    assert counts == real.official
    assert len(real.triplets) == 18_000
    assert sum(len(one.queries) for one in real.benchmark.hidden) == 6_118


def test_half_empty_captions_of_the_real_files(real: FashionIQ):
    lonely = [triplet.group for triplet in real.triplets if not triplet.wordings]
    assert {c: lonely.count(c) for c in CATEGORIES} == {"dress": 1, "shirt": 0, "toptee": 12}  # dress: "."


def test_real_queries_against_the_files(real: FashionIQ, annotations: Path):
    for category in CATEGORIES:
        text = (annotations / "fashioniq" / "captions" / f"cap.{category}.val.json").read_text()
        raw = json.loads(text)
        one = sets(real)[f"fashioniq/val/{category}"]
        assert set(one.gallery) == {record[role] for record in raw for role in ("candidate", "target")}
        for query, record in zip(one.queries, raw, strict=True):
            assert (query.reference, *query.targets) == (record["candidate"], record["target"])
            if all(record["captions"]):
                assert query.caption == " and ".join(caption.strip(".?, ") for caption in record["captions"])


def test_a_real_file_of_another_benchmark(own: Path, annotations: Path):
    cirr = json.loads((annotations / "cirr" / "captions" / "cap.rc2.val.json").read_text())
    write_json(own / "captions" / "cap.dress.val.json", cirr)
    with pytest.raises(UserError, match=r"cap\.dress\.val\.json, record 0: no 'candidate' \(it has caption, img_set, pairid"):
        ready(own)
