"""A miniature GeneCIS with its four tasks, and pictures in the folders of COCO and Visual Genome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fakes.files import write_json, write_picture

if TYPE_CHECKING:
    from pathlib import Path

COCO = tuple(range(139, 139 + 20))
VISUAL_GENOME = tuple(range(2366050, 2366050 + 18))
SIZE = (40, 30)  # of Visual Genome's pictures, pixels
DISTRACTORS = {"focus_attribute": 9, "change_attribute": 14, "focus_object": 14, "change_object": 14}
QUERIES = 5  # of each task


def write_genecis(root: Path) -> Path:
    """Write the files.

    Returns:
        ``root``.
    """
    for number in COCO:
        write_picture(root / "val2017" / f"{number:012d}.jpg", str(number))
    for number in VISUAL_GENOME:
        write_picture(root / "VG_100K_all" / f"{number}.jpg", str(number), SIZE)
    for task in DISTRACTORS:
        records = [_record(task, query) for query in range(QUERIES)]
        write_json(root / "genecis" / f"{task}.json", records)
    return root


def _record(task: str, query: int) -> dict[str, Any]:
    entry = _crop if task.endswith("attribute") else _whole
    reference, target, *gallery = (entry(query + at) for at in range(2 + DISTRACTORS[task]))
    return {"reference": reference, "target": target, "gallery": gallery, "condition": "color" if query % 2 else "brick wall"}


def _whole(at: int) -> dict[str, Any]:
    return {"val_image_id": COCO[at % len(COCO)]}


def _crop(at: int) -> dict[str, Any]:
    """Objects in the middle and at the edges."""
    box = ([12, 10, 8, 6], [0.0, 1.5, 30.5, 20.25], [-1, 4, 20, 20])[at % 3]
    return {"image_id": str(VISUAL_GENOME[at % len(VISUAL_GENOME)]), "instance_bbox": box}
