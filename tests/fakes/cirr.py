"""A miniature CIRR in the layout of its repository and NLVR2's pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fakes.files import write_json, write_picture

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = {"train": "train", "val": "dev", "test1": "test1"}
SETS = {"train": 4, "val": 9, "test1": 9}  # image sets of six pictures; R@50 and the server's 50 names need more than 50 pictures
PAIRS = {"train": 9, "val": 2, "test1": 2}  # of each image set
EMPTY = "27098"  # the one pair of test1 without a caption, in the real file, too


def write_cirr(root: Path, annotations: str = ".", pictures: str = "img_raw", *, numbered: bool = True) -> Path:
    """Write the files.

    Args:
        root: folder of the data set.
        annotations: folder below it of ``captions`` and ``image_splits``.
        pictures: folder below it of ``train``, ``dev`` and ``test1``.
        numbered: whether the folder ``train`` has numbered folders, as NLVR2's has.

    Returns:
        ``root``.
    """
    for split, prefix in PREFIX.items():
        sets = [[f"{prefix}-{number}-{at // 2}-img{at % 2}" for at in range(6)] for number in range(SETS[split])]
        paths = {name: _path(prefix, number, name) for number, members in enumerate(sets) for name in members}
        for name, path in paths.items():
            write_picture(root / pictures / (path if numbered else f"{prefix}/{name}.png"), name)
        records = [_record(split, number, pair, members) for number, members in enumerate(sets) for pair in range(PAIRS[split])]
        if split == "test1":
            records[-1] |= {"pairid": int(EMPTY), "caption": " "}
        write_json(root / annotations / "image_splits" / f"split.rc2.{split}.json", paths)
        write_json(root / annotations / "captions" / f"cap.rc2.{split}.json", records)
    return root


def _path(prefix: str, number: int, name: str) -> str:
    return f"./train/{number}/{name}.png" if prefix == "train" else f"./{prefix}/{name}.png"


def _record(split: str, number: int, pair: int, members: list[str]) -> dict[str, Any]:
    """A record with all the fields of the official files; those of test1 have no answer."""
    reference, target = pair % 6, (pair + 1 + pair // 6) % 6
    record: dict[str, Any] = {
        "pairid": 100 * list(PREFIX).index(split) + 10 * number + pair,
        "reference": members[reference],
        "target_hard": members[target],
        "target_soft": {members[target]: 1.0},
        "caption": f"Make it picture {target} of set {number}",
        "img_set": {"id": number, "members": members, "reference_rank": reference, "target_rank": target},
    }
    if split == "test1":
        del record["target_hard"], record["target_soft"], record["img_set"]["target_rank"]
    return record
