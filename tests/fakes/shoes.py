"""Shoes in miniature, in its real file layout. Its gallery has more than 50 pictures, which R@50 needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fakes.files import write_json, write_picture

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("womens_athletic_shoes", "womens_pumps")
TRAIN = [f"img_{KINDS[at % 2]}_{at}.jpg" for at in range(40)]
EVAL = [f"img_{KINDS[at % 2]}_{at}.jpg" for at in range(100, 156)]
PHRASES = ("is red", "has a higher heel", "are more shiny", "has laces")
PAIRS = [*zip(TRAIN, TRAIN[3:], strict=False), *zip(EVAL[:20], EVAL[20:40], strict=True), (EVAL[0], EVAL[0])]  # reference, target


def write_shoes(root: Path, images: str = "attributedata", *, flat: bool = False) -> None:
    """Write annotations and pictures.

    Args:
        root: folder of the data set.
        images: folder below it for the pictures.
        flat: whether they lie in it, and not in ``womens_pumps/0`` and ``womens_pumps/1``.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "train_im_names.txt").write_text("\n".join(TRAIN) + "\n")
    (root / "eval_im_names.txt").write_text("\n".join(EVAL) + "\n")
    records = [
        {"ImageName": target, "ReferenceImageName": reference, "RelativeCaption": PHRASES[at % len(PHRASES)]}
        for at, (reference, target) in enumerate(PAIRS)
    ]
    write_json(root / "relative_captions_shoes.json", records)
    for at, name in enumerate([*TRAIN, *EVAL]):
        kind = name.removeprefix("img_").rpartition("_")[0]
        write_picture(root / images / ("" if flat else f"{kind}/{at % 3 // 2}") / name, name)
