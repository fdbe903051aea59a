"""One HTML page with everything in it: no script, no other file."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem }
h3 { font-size: 1.05rem }
table { border-collapse: collapse; margin: .8rem 0 } th, td { padding: .2rem .7rem; border-bottom: 1px solid #eee; text-align: right }
th { border-bottom: 1px solid #888; font-weight: 600 } th:first-child, td:first-child { text-align: left } td img { display: block }
img, svg { max-width: 100%; height: auto } .wide { overflow-x: auto } p.note { color: #555 }
"""
QUALITY = 88  # of JPEG


class Page:
    """Collects the parts of a page in their order.

    Args:
        title: of the page.
        about: sentences below it.
    """

    def __init__(self, title: str, about: Sequence[str]) -> None:
        self.title = title
        self.parts = [f"<h1>{escape(title)}</h1>"]
        for sentence in about:
            self.text(sentence)

    def heading(self, text: str, level: int = 2) -> None:
        """A heading."""
        self.parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, text: str, kind: str = "") -> None:
        """A paragraph; ``kind`` is ``note`` for what is less important."""
        self.parts.append(f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str | Image.Image]], folded: str = "") -> None:
        """Cells of text and pictures; ``folded`` is what stands in place of a long one until it is clicked on."""
        cells = [[f"<td>{escape(cell) if isinstance(cell, str) else tag(cell)}</td>" for cell in row] for row in rows]
        lines = ["".join(f"<th>{escape(name)}</th>" for name in head), *("".join(row) for row in cells)]
        table = f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
        self.parts.append(f"<details><summary>{escape(folded)}</summary>{table}</details>" if folded else table)

    def picture(self, image: Image.Image, text: str = "") -> None:
        """A picture and what it is, for those who do not see it."""
        self.parts.append(f'<div class="wide">{tag(image, text)}</div>')

    def svg(self, drawing: str) -> None:
        """A drawing."""
        self.parts.append(f'<div class="wide">{drawing}</div>')

    def html(self) -> str:
        """The page."""
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(self.title)}</title>'
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n'
            + "\n".join(self.parts)
            + "\n</body></html>\n"
        )


def tag(image: Image.Image, text: str = "") -> str:
    """A picture within the page, as JPEG."""
    file = io.BytesIO()
    image.convert("RGB").save(file, format="JPEG", quality=QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img width="{image.width}" height="{image.height}" alt="{escape(text)}" src="data:image/jpeg;base64,{data}">'
