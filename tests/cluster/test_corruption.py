"""More than a thousand damaged files: each is refused by name, does no harm, or is read as it is. Nothing is lost without a word."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from fakes.circo import write_circo
from fakes.cirr import write_cirr
from fakes.corruption import LOST, Tally
from fakes.fashioniq import CATEGORIES, write_fashioniq
from fakes.genecis import write_genecis
from fakes.shoes import write_shoes
from fakes.triplets import write_triplets
from PIL import Image

from data_modules.circo import CIRCO
from data_modules.cirr import CIRR
from data_modules.fashioniq import FashionIQ
from data_modules.genecis import TASKS, GeneCIS
from data_modules.pixels import PixelReader
from data_modules.records import Picture
from data_modules.shoes import Shoes
from data_modules.triplets import Triplets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from data_modules.base import CIRDataModule


@pytest.fixture(scope="module")
def tally() -> Tally:
    """What all tests of this file together have found."""
    return Tally()


# ---- pictures ------------------------------------------------------------------------------------------------------------------

SIDE = 48
FORMATS: dict[str, dict[str, Any]] = {
    "plain.png": {},
    "palette.png": {"transparency": 0},
    "turned.jpg": {"exif": "Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".encode("latin-1")},
    "progressive.jpg": {"progressive": True},
    "lossy.webp": {},
    "lossless.webp": {"lossless": True},
    "one.gif": {},
    "plain.bmp": {},
    "packed.tiff": {"compression": "tiff_adobe_deflate"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_pictures(tally: Tally, tmp_path: Path, name: str):
    """Where a format has no checksums, as JPEG, other pixels may come out; but none of a PNG, and none of a file that was cut off."""
    grey = Image.effect_mandelbrot((SIDE, SIDE), (-2, -1, 1, 1), 20)
    image = Image.merge("RGB", [grey, grey.rotate(90), grey.rotate(180)])
    path = tmp_path / name
    (image.quantize(16) if name.startswith("palette") else image).save(path, **FORMATS[name])
    reader = PixelReader([Picture(name, path, name)], SIDE, "squash")
    whole = reader(torch.tensor([0]))

    def judge(found: torch.Tensor, kind: str) -> str:
        exact = path.suffix == ".png" or kind in LOST
        return "wrong: other pixels" if exact and not torch.equal(found, whole) else ""

    before = len(tally.failures)
    tally.feed("pictures", path, 45, lambda: reader(torch.tensor([0])), judge)
    assert tally.failures[before:] == []


# ---- annotations ---------------------------------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    """JSON of a file that the product has read, and so is JSON."""
    return json.loads(path.read_text(encoding="utf-8-sig"))


def count(data: CIRDataModule) -> dict[str, int]:
    """What a data module has made of its files."""
    read = data.benchmark
    sets = {f"{split} {one.name}": one for split, group in (("val", read.val), ("hidden", read.hidden)) for one in group}
    return {
        "triplets": len(read.triplets),
        **{f"{name} queries": len(one.queries) for name, one in sets.items()},
        **{f"{name} gallery": len(one.gallery) for name, one in sets.items()},
        **{f"{name} answers": sum(len(query.targets) for query in one.queries) for name, one in sets.items()},
        **{f"{name} members": sum(len(query.members) for query in one.queries) for name, one in sets.items()},
    }


def fashioniq_says(root: Path) -> dict[str, int]:
    """By the files alone."""
    captions = {(c, s): load(root / "captions" / f"cap.{c}.{s}.json") for c in CATEGORIES for s in ("train", "val", "test")}
    names = {(c, s): load(root / "image_splits" / f"split.{c}.{s}.json") for c in CATEGORIES for s in ("train", "val", "test")}
    said = {"triplets": sum(len(captions[c, "train"]) for c in CATEGORIES)}
    for c in CATEGORIES:
        said |= {f"val fashioniq/original/{c} queries": len(captions[c, "val"]), f"val fashioniq/original/{c} gallery": len(names[c, "val"])}
        said |= {f"hidden fashioniq/test/{c} queries": len(captions[c, "test"]), f"hidden fashioniq/test/{c} gallery": len(names[c, "test"])}
    return said


def cirr_says(root: Path) -> dict[str, int]:
    """By the files alone."""
    records = {split: load(root / "captions" / f"cap.rc2.{split}.json") for split in ("train", "val", "test1")}
    names = {split: load(root / "image_splits" / f"split.rc2.{split}.json") for split in records}
    members = {split: sum(len(record["img_set"]["members"]) for record in records[split]) for split in ("val", "test1")}
    said = {"triplets": len(records["train"]), "val cirr answers": len(records["val"])}
    for name, split in (("val cirr", "val"), ("hidden cirr", "test1"), ("hidden cirr/subset", "test1")):
        said |= {f"{name} queries": len(records[split]), f"{name} gallery": len(names[split]), f"{name} members": members[split]}
    return said


def circo_says(root: Path) -> dict[str, int]:
    """By the files alone."""
    val, test = (load(root / "annotations" / f"{split}.json") for split in ("val", "test"))
    images = load(root / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json")["images"]
    said = {"val circo queries": len(val), "hidden circo queries": len(test), "val circo gallery": len(images)}
    return said | {"val circo answers": sum(len(set(record["gt_img_ids"])) for record in val)}


def genecis_says(root: Path) -> dict[str, int]:
    """By the files alone."""
    said = {}
    for task in TASKS:
        records = load(root / "genecis" / f"{task}.json")
        pictures = [{json.dumps(entry) for entry in (record["target"], *record["gallery"])} for record in records]
        said |= {f"val genecis/{task} queries": len(records), f"val genecis/{task} members": sum(map(len, pictures))}
    return said


def shoes_says(root: Path) -> dict[str, int]:
    """By the files alone."""
    names = {split: (root / f"{split}_im_names.txt").read_text("utf-8-sig").split() for split in ("train", "eval")}
    records = load(root / "relative_captions_shoes.json")
    queries = sum(record["ImageName"] in names["eval"] for record in records)
    return {"triplets": len(records) - queries, "val shoes queries": queries, "val shoes gallery": len(names["eval"])}


class Bench(NamedTuple):
    """A benchmark: what writes it, what reads it, what its files say, the files, and how many damages each of them gets."""

    write: Callable[[Path], object]
    make: Callable[[str], CIRDataModule]
    says: Callable[[Path], dict[str, int]]
    files: str
    damages: int


BENCHES = {
    "fashioniq": Bench(write_fashioniq, FashionIQ, fashioniq_says, "*/*.json", 5),
    "cirr": Bench(write_cirr, CIRR, cirr_says, "*/*.rc2.*.json", 14),
    "circo": Bench(write_circo, CIRCO, circo_says, "**/annotations/*.json", 27),
    "genecis": Bench(write_genecis, GeneCIS, genecis_says, "genecis/*.json", 21),
    "shoes": Bench(write_shoes, Shoes, shoes_says, "*s*.[jt]*", 27),
}


@pytest.mark.parametrize("name", BENCHES)
def test_annotations(tally: Tally, tmp_path: Path, name: str):
    """There is no checksum: a changed letter is read as it is. But there are as many records and names as the file has."""
    bench = BENCHES[name]
    bench.write(tmp_path)
    files = sorted(tmp_path.glob(bench.files))

    def read() -> dict[str, int]:
        data = bench.make(str(tmp_path))
        data.setup()
        return count(data)

    def judge(found: dict[str, int], _: str) -> str:
        less = {what: (number, found.get(what, 0)) for what, number in bench.says(tmp_path).items() if found.get(what, 0) != number}
        return f"silent drop: {less}" if less else ""

    assert judge(read(), "") == ""
    before = len(tally.failures)
    for path in files:
        tally.feed("annotations", path, bench.damages, read, judge, *(file.name for file in files))
    assert tally.failures[before:] == []
