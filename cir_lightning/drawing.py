"""A drawing that is described once, and written as PNG by Pillow and as SVG."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from pathlib import Path

ANCHORS = {"l": "start", "m": "middle", "r": "end"}
SHARP = 2  # pixels of a PNG for each unit


class _Line(NamedTuple):
    ends: tuple[float, float, float, float]
    colour: str
    width: float


class _Dot(NamedTuple):
    centre: tuple[float, float]
    radius: float
    colour: str
    filled: bool


class _Text(NamedTuple):
    place: tuple[float, float]
    text: str
    size: int
    anchor: str
    colour: str


class Drawing:
    """Lines, dots and texts on white; the origin is above on the left, and later things lie over earlier ones.

    Args:
        width: in units, about a pixel of a screen.
        height: likewise.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.things: list[_Line | _Dot | _Text] = []

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str = "black", width: float = 1) -> None:
        """A straight line."""
        self.things.append(_Line((x0, y0, x1, y1), colour, width))

    def dot(self, x: float, y: float, radius: float, colour: str = "black", *, filled: bool = True) -> None:
        """A disk, or a circle on white."""
        self.things.append(_Dot((x, y), radius, colour, filled))

    def text(self, x: float, y: float, text: str, size: int = 14, anchor: str = "l", colour: str = "black") -> None:
        """A line of text whose middle is as high as ``y``; ``anchor`` says what is at ``x``: its left end, middle or right end."""
        self.things.append(_Text((x, y), text, size, anchor, colour))

    @property
    def texts(self) -> list[_Text]:
        """All texts."""
        return [thing for thing in self.things if isinstance(thing, _Text)]

    def save_png(self, path: Path) -> None:
        """Write it as PNG."""
        sheet = Image.new("RGB", (round(self.width * SHARP), round(self.height * SHARP)), "white")
        pen = ImageDraw.Draw(sheet)
        for thing in self.things:
            if isinstance(thing, _Line):
                pen.line([SHARP * end for end in thing.ends], fill=thing.colour, width=round(SHARP * thing.width))
            elif isinstance(thing, _Dot):
                (x, y), radius = (SHARP * place for place in thing.centre), SHARP * thing.radius
                fill = thing.colour if thing.filled else "white"
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=thing.colour, width=round(1.5 * SHARP))
            else:
                place = SHARP * thing.place[0], SHARP * thing.place[1]
                pen.text(place, thing.text, fill=thing.colour, font=font(SHARP * thing.size), anchor=f"{thing.anchor}m")
        sheet.save(path, format="PNG")

    def to_svg(self) -> str:
        """The same as SVG."""
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
        ground = '<rect width="100%" height="100%" fill="white"/>'
        return "\n".join([head, ground, *map(_element, self.things), "</svg>", ""])


def _element(thing: _Line | _Dot | _Text) -> str:
    """Of SVG."""
    if isinstance(thing, _Line):
        ends = " ".join(f'{name}="{end:.1f}"' for name, end in zip(("x1", "y1", "x2", "y2"), thing.ends, strict=True))
        return f'<line {ends} stroke="{thing.colour}" stroke-width="{thing.width:g}"/>'
    if isinstance(thing, _Dot):
        place = f'cx="{thing.centre[0]:.1f}" cy="{thing.centre[1]:.1f}" r="{thing.radius:g}"'
        return f'<circle {place} fill="{thing.colour if thing.filled else "white"}" stroke="{thing.colour}" stroke-width="1.5"/>'
    place = f'x="{thing.place[0]:.1f}" y="{thing.place[1]:.1f}" dominant-baseline="central" text-anchor="{ANCHORS[thing.anchor]}"'
    return f'<text {place} font-size="{thing.size}" fill="{thing.colour}">{escape(thing.text)}</text>'


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own."""
    return ImageFont.load_default(size)


def length(text: str, size: int) -> float:
    """Width of a text, in units; an eighth more than Pillow's font needs, as fonts of browsers are wider."""
    return 1.125 * font(size).getlength(text)
