"""A study as pictures: figures of every arm with their seeds and intervals, and recall against cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from cir_lightning.drawing import Drawing, length
from cir_lightning.study.statistics import summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cir_lightning.study.outcomes import Outcomes

ROW, PANEL, GAP, HEAD, FOOT = 30, 300, 28, 70, 64  # units
PLOT = 240  # height of a panel of costs
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#bbbbbb"  # readable to the colour-blind (Okabe and Ito, 2008)
SMALL = 13  # size of text
WIDE = 20  # times; costs that differ by more have a logarithmic axis
PER_LINE = 3  # panels of costs
Box = tuple[float, float, float, float]


class Axis(NamedTuple):
    """Where numbers are on a line.

    Attributes:
        ticks: numbers that are marked; the first and the last are its ends.
        start: place of the first one.
        end: place of the last one.
        logarithmic: whether equal ratios are equally long.
    """

    ticks: list[float]
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Of a number; beyond the ends, the end."""
        scale: Callable[[float], float] = math.log10 if self.logarithmic else float
        first, last = scale(self.ticks[0]), scale(self.ticks[-1])
        share = (scale(value) - first) / (last - first)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def linear_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers around a range, about so many steps.

    >>> linear_ticks(41.2, 58.9)
    [40.0, 45.0, 50.0, 55.0, 60.0]
    """
    rough = max(high - low, 1e-9 * max(abs(high), 1.0), 1e-9) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around a range.

    >>> log_ticks(30, 4000)
    [10.0, 100.0, 1000.0, 10000.0]
    """
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def draw_figures(outcomes: Outcomes) -> Drawing:
    """For each figure of the headline a panel: arms below each other, a circle for every seed, the mean and its interval."""
    arms, figures = outcomes.arms, outcomes.headline
    left = GAP + max(length(arm, SMALL) for arm in arms) + 12
    drawing = Drawing(left + len(figures) * (PANEL + GAP), HEAD + ROW * len(arms) + FOOT)
    drawing.text(GAP, 22, outcomes.study.about or outcomes.study.name, size=16)
    drawing.text(
        GAP, HEAD + ROW * len(arms) + 50, f"circles: seeds; dots and bars: mean and 95 % interval; line: {outcomes.study.reference}", 12
    )
    for at, arm in enumerate(arms):
        drawing.text(left - 12, _row(at), arm, SMALL, "r", ORANGE if arm == outcomes.study.reference else "black")
    for column, figure in enumerate(figures):
        _figure_panel(drawing, outcomes, figure, left + column * (PANEL + GAP))
    drawing.width = max(drawing.width, *(thing.place[0] + length(thing.text, thing.size) for thing in drawing.texts if thing.anchor == "l"))
    return drawing


def _row(at: int) -> float:
    return HEAD + ROW * (at + 0.5)


def _figure_panel(drawing: Drawing, outcomes: Outcomes, figure: str, left: float) -> None:
    values = {arm: list(found.values()) for arm in outcomes.arms if (found := outcomes.values(arm, figure))}
    means = {arm: summarise(some) for arm, some in values.items()}
    ends = [one.mean + sign * (one.half or 0.0) for one in means.values() for sign in (-1, 1)]
    low, high = max(0.0, min(ends)), min(100.0, max(ends))
    axis = Axis(
        linear_ticks(min(low, *map(min, values.values()), 100.0), max(high, *map(max, values.values()), 0.0)), left, left + PANEL - 20
    )
    foot = HEAD + ROW * len(outcomes.arms)
    drawing.text(left, HEAD - 18, f"{figure}, percent", SMALL)
    for tick in axis.ticks:
        drawing.line(axis.place(tick), HEAD - 4, axis.place(tick), foot, "#dddddd")
        drawing.text(axis.place(tick), foot + 14, f"{tick:g}", 12, "m")
    if (reference := means.get(outcomes.study.reference)) is not None:
        drawing.line(axis.place(reference.mean), HEAD - 4, axis.place(reference.mean), foot, ORANGE)
    for at, arm in enumerate(outcomes.arms):
        if arm not in means:
            continue
        colour, mean = (ORANGE if arm == outcomes.study.reference else BLUE), means[arm]
        for value in values[arm]:
            drawing.dot(axis.place(value), _row(at), 3.5, GREY, filled=False)
        if mean.half is not None:
            drawing.line(axis.place(mean.mean - mean.half), _row(at), axis.place(mean.mean + mean.half), _row(at), colour, 2)
        drawing.dot(axis.place(mean.mean), _row(at), 4.5, colour)


def draw_costs(outcomes: Outcomes) -> Drawing:
    """The first figure of the headline against each cost in which arms differ; arms by number."""
    figure, arms = outcomes.headline[0], outcomes.arms
    costs = [cost for cost in outcomes.costs if len({round(value, 6) for value in _means(outcomes, cost).values()}) > 1]
    names = [f"{at}  {arm}" for at, arm in enumerate(arms, 1)]
    legend = GAP + max(length(name, SMALL) for name in names) + 40
    lines, columns = max(1, math.ceil(len(costs) / PER_LINE)), max(1, min(PER_LINE, len(costs)))
    height = max(lines * (PLOT + HEAD), 22 * len(arms) + 20)
    drawing = Drawing(legend + columns * (PANEL + GAP) + GAP, HEAD + height)
    drawing.text(GAP, 22, f"{figure}, percent, against cost" if costs else f"{figure}: no cost differs between arms", size=16)
    for at, name in enumerate(names):
        drawing.text(GAP, HEAD + 22 * at, name, SMALL, "l", ORANGE if arms[at] == outcomes.study.reference else "black")
    for at, cost in enumerate(costs):
        corner = legend + 20 + (at % PER_LINE) * (PANEL + GAP), HEAD + (at // PER_LINE) * (PLOT + HEAD)
        _cost_panel(drawing, outcomes, figure, cost, corner)
    return drawing


def _means(outcomes: Outcomes, name: str) -> dict[str, float]:
    return {arm: summarise(list(found.values())).mean for arm in outcomes.arms if (found := outcomes.values(arm, name))}


def _cost_panel(drawing: Drawing, outcomes: Outcomes, figure: str, cost: str, corner: tuple[float, float]) -> None:
    recall, price = _means(outcomes, figure), _means(outcomes, cost)
    both = [arm for arm in outcomes.arms if arm in recall and arm in price]
    low, high = min(price.values()), max(price.values())
    logarithmic = low > 0 and high > WIDE * low
    ticks = log_ticks(low, high) if logarithmic else linear_ticks(low, high)
    across = Axis(ticks, corner[0], corner[0] + PANEL - 40, logarithmic)
    up = Axis(linear_ticks(min(recall.values()), max(recall.values())), corner[1] + PLOT, corner[1])
    drawing.text(corner[0], corner[1] - 22, cost + (" (logarithmic)" if logarithmic else ""), SMALL)
    for tick in across.ticks:
        drawing.line(across.place(tick), corner[1], across.place(tick), corner[1] + PLOT, "#dddddd")
        drawing.text(across.place(tick), corner[1] + PLOT + 14, _short(tick), 12, "m")
    for tick in up.ticks:
        drawing.line(corner[0], up.place(tick), corner[0] + PANEL - 40, up.place(tick), "#dddddd")
        drawing.text(corner[0] - 6, up.place(tick), f"{tick:g}", 12, "r")
    points = {arm: (across.place(price[arm]), up.place(recall[arm])) for arm in both}
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points.values()]
    for arm, (x, y) in points.items():
        drawing.dot(x, y, 4, ORANGE if arm == outcomes.study.reference else BLUE)
        label = str(1 + outcomes.arms.index(arm))
        place = _free(x, y, length(label, 11), taken)
        drawing.text(*place, label, 11, "m", "#444444")


def _free(x: float, y: float, width: float, taken: list[Box]) -> tuple[float, float]:
    """A place for a label near a point where nothing is yet; the nearest of some, which is then taken."""
    tried = [(x + radius * math.cos(angle), y - radius * math.sin(angle)) for radius in (12, 20, 28, 36) for angle in _turns()]
    boxes: Sequence[Box] = [(cx - width / 2, cy - 6, cx + width / 2, cy + 6) for cx, cy in tried]
    at = next((number for number, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)), 0)
    taken.append(boxes[at])
    return tried[at]


def _turns() -> list[float]:
    return [math.pi * turn / 4 for turn in (1, 7, 3, 5, 0, 2, 6, 4)]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _short(value: float) -> str:
    """A number on an axis.

    >>> _short(2_500_000), _short(40_000), _short(0.5)
    ('2.5M', '40k', '0.5')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"
