"""A user's folder in miniature: 40 pictures of coloured shapes in ``images`` and ``triplets.csv`` beside it."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

from fakes.tiny import COLOURS, draw

if TYPE_CHECKING:
    from pathlib import Path

CATEGORIES = {"circle": 12, "square": 11, "triangle": 11, "cross": 11, "bar": 11}  # and their test rows


def write_triplets(root: Path) -> None:
    """Draw the pictures and write 280 changes of colour, a category for each shape; a row in five is for test, none for val."""
    (root / "images").mkdir(parents=True)
    for shape in CATEGORIES:
        for colour in COLOURS:
            draw(root / "images" / f"{colour} {shape}.png", colour, shape)
    changes = [(shape, before, after) for shape in CATEGORIES for before in COLOURS for after in COLOURS if before != after]
    with (root / "triplets.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("reference", "caption", "target", "split", "category", "subset"))
        for number, (shape, before, after) in enumerate(changes):
            names = [f"{colour} {shape}.png" for colour in (before, after, *COLOURS[:3])]
            subset = "|".join(dict.fromkeys(names))
            table.writerow((names[0], f"but {after}", names[1], "test" if number % 5 == 0 else "", shape, subset))


def write_jsonl(root: Path) -> None:
    """The same as JSON lines, in ``triplets.jsonl``."""
    write_triplets(root)
    with (root / "triplets.csv").open(encoding="utf-8", newline="") as file:
        rows = [row | {"subset": row["subset"].split("|")} for row in csv.DictReader(file)]
    (root / "triplets.csv").unlink()
    (root / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
