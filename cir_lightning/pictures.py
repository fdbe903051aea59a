"""Pictures of results: reference, caption, the first five, the target marked."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from data_modules.images import load_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from data_modules.records import EvaluationSet, Picture

CELL, GAP, TEXT = 120, 10, 230  # pixels: side of a picture, space around it, width of the caption column
RIGHT, FRAME = "#1a9641", 5
FIRST = 5


def spread(count: int, rows: int) -> list[int]:
    """Up to ``rows`` indices below ``count``, evenly spread, so that what is shown is not chosen by its result."""
    rows = min(rows, count)
    return [i * count // rows for i in range(rows)]


def result_grid(
    evaluation: EvaluationSet,
    ranks: Sequence[int],
    lists: Sequence[Sequence[str]],
    pictures: Mapping[str, Picture],
    rows: Sequence[int],
) -> Image.Image:
    """One row per query: reference, caption with the target's rank, the target, and the first five with right answers framed.

    Args:
        evaluation: the queries.
        ranks: of each query's right answer.
        lists: picture names of each query, best first.
        pictures: by name.
        rows: places of the queries to show.
    """
    width = GAP + 2 * (CELL + GAP) + TEXT + GAP + FIRST * (CELL + GAP) + 2 * GAP
    header = 34
    sheet = Image.new("RGB", (width, header + len(rows) * (CELL + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font, bold = ImageFont.load_default(15), ImageFont.load_default(16)
    target_x = GAP + CELL + GAP + TEXT + GAP
    first_x = target_x + CELL + 3 * GAP
    titles = (
        (GAP, "reference"),
        (GAP + CELL + GAP, "relative caption"),
        (target_x, "target"),
        (first_x, "first five (right answers framed)"),
    )
    for x, title in titles:
        draw.text((x, 8), title, fill="black", font=bold)
    for at, row in enumerate(rows):
        query, y = evaluation.queries[row], header + at * (CELL + GAP)
        _paste(sheet, pictures[query.reference], GAP, y)
        text = "\n".join(textwrap.wrap(query.caption, 28)[:4])
        draw.multiline_text((GAP + CELL + GAP, y + 8), f"{text}\n\nrank of the target: {ranks[row]}", fill="black", font=font)
        _paste(sheet, pictures[query.targets[0]], target_x, y)
        for place, name in enumerate(lists[row][:FIRST]):
            x = first_x + place * (CELL + GAP)
            _paste(sheet, pictures[name], x, y)
            if name in query.targets:
                draw.rectangle((x - FRAME, y - FRAME, x + CELL + FRAME - 1, y + CELL + FRAME - 1), outline=RIGHT, width=FRAME)
    return sheet


def _paste(sheet: Image.Image, picture: Picture, x: int, y: int) -> None:
    image = load_image(picture.path, picture.box)
    image.thumbnail((CELL, CELL))
    sheet.paste(image, (x + (CELL - image.width) // 2, y + (CELL - image.height) // 2))
