"""A miniature CIRCO in the layout of its repository and COCO's archives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fakes.files import write_json, write_picture

if TYPE_CHECKING:
    from pathlib import Path

IDS = tuple(271520 + 7 * number for number in range(56))  # of the pictures; the server wants 50 names
VAL, TEST = 7, 5  # queries


def write_circo(root: Path) -> Path:
    """Write the files.

    Returns:
        ``root``.
    """
    coco = root / "COCO2017_unlabeled"
    for number in IDS:
        write_picture(coco / "unlabeled2017" / f"{number:012d}.jpg", str(number))
    images = [{"license": 1, "file_name": f"{number:012d}.jpg", "height": 9, "width": 12, "id": number} for number in IDS]
    write_json(coco / "annotations" / "image_info_unlabeled2017.json", {"info": {}, "images": images, "licenses": [], "categories": []})
    write_json(root / "annotations" / "val.json", [_record(query) | _answer(query) for query in range(VAL)])
    write_json(root / "annotations" / "test.json", [_record(query) for query in range(TEST)])
    return root


def _record(query: int) -> dict[str, Any]:
    return {"reference_img_id": IDS[query], "relative_caption": f"has {query} more dogs", "shared_concept": "a small dog", "id": query}


def _answer(query: int) -> dict[str, Any]:
    """One to four right answers, the target first."""
    right = list(IDS[10 + 4 * query :][: 1 + query % 4])
    return {"target_img_id": right[0], "gt_img_ids": right, "semantic_aspects": ["cardinality"]}
