"""What annotation files and configs hold, counted without the product: by their own formats alone."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import yaml

from fakes.fashioniq import CATEGORIES
from fakes.genecis import DISTRACTORS

if TYPE_CHECKING:
    from pathlib import Path


def parsed(path: Path) -> Any:
    """JSON of a file that the product has read, and so is JSON."""
    return json.loads(path.read_text(encoding="utf-8-sig"))


def fashioniq(root: Path) -> dict[str, int]:
    """By the names of :func:`test_corruption.count`."""
    captions = {(c, s): parsed(root / "captions" / f"cap.{c}.{s}.json") for c in CATEGORIES for s in ("train", "val", "test")}
    names = {(c, s): parsed(root / "image_splits" / f"split.{c}.{s}.json") for c in CATEGORIES for s in ("train", "val", "test")}
    said = {"triplets": sum(len(captions[c, "train"]) for c in CATEGORIES)}
    for c in CATEGORIES:
        said |= {
            f"val fashioniq/original/{c} queries": len(captions[c, "val"]),
            f"val fashioniq/original/{c} gallery": len(names[c, "val"]),
        }
        said |= {
            f"hidden fashioniq/test/{c} queries": len(captions[c, "test"]),
            f"hidden fashioniq/test/{c} gallery": len(names[c, "test"]),
        }
    return said


def cirr(root: Path) -> dict[str, int]:
    """By the names of :func:`test_corruption.count`."""
    records = {split: parsed(root / "captions" / f"cap.rc2.{split}.json") for split in ("train", "val", "test1")}
    names = {split: parsed(root / "image_splits" / f"split.rc2.{split}.json") for split in records}
    members = {split: sum(len(record["img_set"]["members"]) for record in records[split]) for split in ("val", "test1")}
    said = {"triplets": len(records["train"]), "val cirr answers": len(records["val"])}
    for name, split in (("val cirr", "val"), ("hidden cirr", "test1"), ("hidden cirr/subset", "test1")):
        said |= {f"{name} queries": len(records[split]), f"{name} gallery": len(names[split]), f"{name} members": members[split]}
    return said


def circo(root: Path) -> dict[str, int]:
    """By the names of :func:`test_corruption.count`."""
    val, test = (parsed(root / "annotations" / f"{split}.json") for split in ("val", "test"))
    images = parsed(root / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json")["images"]
    said = {"val circo queries": len(val), "hidden circo queries": len(test), "val circo gallery": len(images)}
    return said | {"val circo answers": sum(len(set(record["gt_img_ids"])) for record in val)}


def genecis(root: Path) -> dict[str, int]:
    """By the names of :func:`test_corruption.count`."""
    said = {}
    for task in DISTRACTORS:
        records = parsed(root / "genecis" / f"{task}.json")
        pictures = [{json.dumps(entry) for entry in (record["target"], *record["gallery"])} for record in records]
        said |= {f"val genecis/{task} queries": len(records), f"val genecis/{task} members": sum(map(len, pictures))}
    return said


def shoes(root: Path) -> dict[str, int]:
    """By the names of :func:`test_corruption.count`."""
    names = {split: (root / f"{split}_im_names.txt").read_text("utf-8-sig").split() for split in ("train", "eval")}
    records = parsed(root / "relative_captions_shoes.json")
    queries = sum(record["ImageName"] in names["eval"] for record in records)
    return {"triplets": len(records) - queries, "val shoes queries": queries, "val shoes gallery": len(names["eval"])}


def rows_of(path: Path) -> int:
    """By the file alone: its rows without the header, or its lines with something on them."""
    if path.suffix == ".jsonl":
        return sum(bool(line.strip()) for line in path.read_text("utf-8").split("\n"))
    with path.open(encoding="utf-8-sig", newline="") as file:
        return sum(any(row) for row in csv.reader(file)) - 1


def keys_of(node: yaml.Node, path: str = "") -> list[str]:
    """The keys of a YAML text, each as often as it stands there, with the keys above it; ``init_args`` may be left out."""
    if isinstance(node, yaml.MappingNode):
        named = [(path if key.value == "init_args" else f"{path}.{key.value}", value) for key, value in node.value]
        return [leaf for name, value in named for leaf in (*({name} - {path}), *keys_of(value, name))]
    if isinstance(node, yaml.SequenceNode):
        return [leaf for at, value in enumerate(node.value) for leaf in keys_of(value, f"{path}.{at}")]
    return []
