"""Fashion-IQ in miniature, in its real file layout. Its galleries have more than 50 pictures, which R@50 needs."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from fakes.files import write_json, write_picture

if TYPE_CHECKING:
    from pathlib import Path

CATEGORIES = ("dress", "shirt", "toptee")
SIZES = {"train": (40, 30), "val": (60, 27), "test": (52, 12)}  # pictures and records per category
PHRASES = ("is red", "has longer sleeves.", "Is darker, with stripes", "is more casual?", "has a wide collar")


def write_fashioniq(root: Path, images: str = "images", *, by_category: bool = False) -> None:
    """Write annotations and pictures.

    Args:
        root: folder of the data set.
        images: folder below it for the pictures.
        by_category: whether it has a folder for each category.
    """
    for category in CATEGORIES:
        for split in SIZES:
            names = picture_names(category, split)
            write_json(root / "image_splits" / f"split.{category}.{split}.json", names)
            write_json(root / "captions" / f"cap.{category}.{split}.json", records(category, split))
            for name in names:
                suffix = ".png" if int(name[-1]) % 3 else ".jpg"
                write_picture(root / images / (category if by_category else "") / f"{name}{suffix}", name)


def picture_names(category: str, split: str) -> list[str]:
    """The split file: every second picture of toptee is also one of shirt."""
    owners = (category, "shirt" if category == "toptee" else category)
    return [f"B0{owners[at % 2][0]}{split[1]}{at:06}".upper() for at in range(SIZES[split][0])]


def records(category: str, split: str) -> list[dict[str, Any]]:
    """The caption file; the first record of toptee's val has an empty caption, as in the real one."""
    names, (size, count) = picture_names(category, split), SIZES[split]
    rng = random.Random(f"{category}/{split}")
    found = [{"target": names[(at + count) % size], "candidate": names[at], "captions": rng.sample(PHRASES, 2)} for at in range(count)]
    if (category, split) == ("toptee", "val"):
        found[0]["captions"][0] = ""
    if split == "test":
        for record in found:
            del record["target"]
    return found
