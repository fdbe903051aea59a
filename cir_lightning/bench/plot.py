"""A run of ``cir bench`` as a picture: stacked bars of stage times per batch size, a line of panels for each arm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from cir_lightning.bench.results import GALLERY, ITEM, OTHER, QUERIES, TRAINING
from cir_lightning.bench.tables import cold_rows
from data_modules.stages import (
    BACKWARD,
    CAPTION,
    CONNECTOR,
    FEATURES,
    GATHER,
    LLM,
    LOSS,
    OPTIMIZER,
    POOLING,
    READ,
    TEMPLATE,
    TOWER,
    TRANSFORM,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cir_lightning.bench.results import Arm, Bench, Work

KINDS = (TRAINING, GALLERY, QUERIES)
PANEL, PLOT, LEFT, GAP = (560, 430), 300, 80, 24  # pixels: a panel, height of its bars, space for the axis, space between panels
HEAD, TITLE, LEGEND = 96, 40, 34
BAR = 0.56  # of the space of a batch size
COLOURS = {  # readable to the colour-blind, dark and light in turn (Okabe and Ito, 2008, and lighter ones of them)
    FEATURES: "#000000",
    CONNECTOR: "#0072b2",
    "template and tokenising": "#f0e442",
    TEMPLATE: "#f0e442",
    CAPTION: "#b8a800",
    LLM: "#d55e00",
    "pooling and projection": "#cc79a7",
    POOLING: "#cc79a7",
    GATHER: "#882255",
    LOSS: "#56b4e9",
    BACKWARD: "#009e73",
    OPTIMIZER: "#7b4fb0",
    OTHER: "#6b4226",
    READ: "#d9d9d9",
    TRANSFORM: "#bdbdbd",
    TOWER: "#969696",
}


class Bar(NamedTuple):
    """One batch size.

    Attributes:
        batch: its size.
        parts: row and milliseconds of an item, from below; what there would be without a cache comes last, as ``cold``.
        cold: how many of the last parts are that.
    """

    batch: int
    parts: list[tuple[str, float]]
    cold: int

    @property
    def warm(self) -> float:
        """Milliseconds of what is done."""
        return sum(height for _, height in self.parts[: len(self.parts) - self.cold])

    @property
    def height(self) -> float:
        """Of everything."""
        return sum(height for _, height in self.parts)


def draw(bench: Bench) -> Image.Image:
    """The picture."""
    arms = bench.measured
    panels = [[bars_of(arm, kind) for kind in KINDS] for arm in arms]
    tops = [round_up(max((bar.height for line in panels for bar in line[at]), default=1.0)) for at in range(len(KINDS))]
    parts = {part for line in panels for bars in line for bar in bars for part, _ in bar.parts}
    seen = list({COLOURS[row]: row for row in reversed(COLOURS) if row in parts}.values())[::-1]  # the first of one colour
    width = GAP + len(KINDS) * (PANEL[0] + GAP)
    columns = max(1, width // 270)
    sheet = Image.new("RGB", (width, HEAD + len(arms) * PANEL[1] + (-(-len(seen) // columns)) * LEGEND + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    header = bench.header
    pen.text((GAP, 14), "Where time goes: milliseconds of an item, by batch size", fill="black", font=_font(26))
    machine = ", ".join(str(part) for part in (header.get("gpu"), f"{header.get('cpu')} ({header.get('cores')} cores)") if part)
    below = f"{machine}; {header.get('date')}; grey and in brackets: with the pictures, were features not cached"
    pen.text((GAP, 54), below, fill="#444444", font=_font(18))
    for line, (arm, works) in enumerate(zip(arms, panels, strict=True)):
        pen.text((GAP, HEAD + line * PANEL[1]), arm.name, fill="black", font=_font(22))
        for column, (kind, bars) in enumerate(zip(KINDS, works, strict=True)):
            corner = GAP + column * (PANEL[0] + GAP), HEAD + TITLE + line * PANEL[1]
            _panel(pen, corner, kind, bars, tops[column], ITEM[kind])
    _legend(pen, seen, HEAD + len(arms) * PANEL[1], columns)
    return sheet


def bars_of(arm: Arm, kind: str) -> list[Bar]:
    """The bars of one kind of work."""
    return [_bar(arm, work) for work in arm.works if work.kind == kind and not work.refused]


def _bar(arm: Arm, work: Work) -> Bar:
    warm = [(row, 1000 * work.time(*stages) / work.batch) for row, stages in work.rows().items()]
    cold = [(row, 1000 * seconds / work.batch) for row, seconds in cold_rows(arm, work).items()]
    return Bar(work.batch, [*warm, *cold], len(cold))


def round_up(value: float) -> float:
    """The next of 1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10 times a power of ten.

    >>> round_up(33), round_up(0.4), round_up(81)
    (40.0, 0.4, 100.0)
    """
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _panel(pen: ImageDraw.ImageDraw, corner: tuple[int, int], title: str, bars: Sequence[Bar], top: float, item: str) -> None:
    x, y = corner[0] + LEFT, corner[1] + 40
    pen.text((corner[0], corner[1] + 4), title, fill="black", font=_font(19))
    for tick in range(5):
        level, value = y + PLOT - tick * PLOT // 4, top * tick / 4
        pen.line((x, level, corner[0] + PANEL[0], level), fill="#dddddd" if tick else "black", width=2)
        pen.text((x - 10, level), f"{value:g}", fill="black", font=_font(17), anchor="rm")
    pen.text((corner[0] + PANEL[0], corner[1] + 8), f"ms per {item}", fill="#444444", font=_font(17), anchor="ra")
    if not bars:
        pen.text((x + 20, y + PLOT // 2), "nothing was measured", fill="#444444", font=_font(18))
        return
    slot = (PANEL[0] - LEFT) / len(bars)
    for at, bar in enumerate(bars):
        left = x + slot * (at + (1 - BAR) / 2)
        _stack(pen, (left, y + PLOT), slot * BAR, bar, PLOT / top)
        pen.text((left + slot * BAR / 2, y + PLOT + 6), f"batch {bar.batch}", fill="black", font=_font(17), anchor="ma")


def _stack(pen: ImageDraw.ImageDraw, foot: tuple[float, float], width: float, bar: Bar, scale: float) -> None:
    left, level = foot
    for at, (row, height) in enumerate(bar.parts):
        above = level - height * scale
        cold = at >= len(bar.parts) - bar.cold
        if round(level) > round(above):
            inset = width * 0.18 if cold else 0
            pen.rectangle((left + inset, round(above), left + width - inset, round(level) - 1), fill=COLOURS[row])
        level = above
    label = _figure(bar.warm) + (f" ({_figure(bar.height)})" if bar.cold else "")
    place = left + width / 2, level - 4
    pen.rectangle(pen.textbbox(place, label, font=_font(17), anchor="mb"), fill="white")  # over lines of the grid
    pen.text(place, label, fill="black", font=_font(17), anchor="mb")


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _legend(pen: ImageDraw.ImageDraw, rows: Sequence[str], y: int, columns: int) -> None:
    for at, row in enumerate(rows):
        x, below = GAP + (at % columns) * 270, y + (at // columns) * LEGEND
        pen.rectangle((x, below + 4, x + 22, below + 24), fill=COLOURS[row])
        pen.text((x + 32, below + 3), row, fill="black", font=_font(18))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
