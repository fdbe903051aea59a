"""The result of ``cir analyze failures``: a page, the same tables as Markdown and CSV, pictures."""

from __future__ import annotations

import csv
import io
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cir_lightning.analysis import failures
from cir_lightning.analysis.page import Page
from cir_lightning.drawing import Drawing, length
from cir_lightning.pictures import result_grid
from cir_lightning.storage import replace_file
from cir_lightning.study.plot import BLUE, GREY, Axis, linear_ticks
from data_modules.images import load_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from PIL import Image

    from cir_lightning.analysis.failures import Answered, Slice
    from data_modules.records import Picture

SLICES, HUBS = "Recall by caption", "Hubs"  # titles
CHOSEN = {
    "worst": "Those whose right answers rank last; a rank beyond the gallery stands for one that cannot be reached.",
    "best": "Those that are right at once although the reference alone ranks their answers last, where that is known.",
}
ROWS = 8  # queries of a picture
THUMB = 72  # pixels
FEW = 20  # queries; a slice with fewer says little
ROW, PANEL, SMALL = 22, 420, 13  # units of a drawing


class Table(NamedTuple):
    """Cells with a title and what they mean; the first row names the columns."""

    title: str
    about: str
    cells: list[list[str]]


def tables(answered: Answered) -> list[Table]:
    """All numbers of one set of queries."""
    found = [_slice_table(answered)]
    if answered.reference is not None:
        found += [_reliance_table(answered), _move_table(answered)]
    return found if answered.evaluation.members_only else [*found, _hub_table(answered)]  # small galleries of their own have no hubs


def _slice_table(answered: Answered) -> Table:
    rows = [
        [one.name, one.value, str(one.queries), f"{one.recall:.1f}", f"{one.low:.1f} to {one.high:.1f}", f"{one.recall_ten:.1f}"]
        for one in failures.slices(answered)
    ]
    about = (
        f"Percent, with intervals of 95 % (Wilson, as if queries were independent). A query counts with each of its values; of a property "
        f"the {failures.MOST_VALUES} most frequent values are shown. Below {FEW} queries a figure says little; the picture leaves it out."
    )
    return Table(SLICES, about, [["property", "value", "queries", "R@1", "interval", "R@10"], *rows])


def _reliance_table(answered: Answered) -> Table:
    head = ["first picture of", "is right", "is the first result", "so by chance", "first result and right", "first result and wrong"]
    rows = []
    for label, part in (("", answered), *((f", captions of {label} words", part) for label, part in failures.by_length(answered))):
        for one in failures.reliances(part):
            right, taken, both, wrong = (f"{value:.1f}" for value in (one.right, one.taken, one.taken_right, one.taken_wrong))
            chance = "-" if answered.evaluation.members_only else f"{one.by_chance:.1f}"  # other queries have other galleries
            rows.append([f"the {one.half} alone{label}", right, taken, chance, both, wrong])
    rows.sort(key=lambda row: row[0].partition(" alone")[0], reverse=True)  # the reference first; otherwise in their order
    about = (
        "Percent of the queries. The reference alone finds its nearest neighbour, other than itself; the caption alone is read with a "
        "plain grey picture. The last column is over-reliance: the first result is what one half asks for, and it is wrong. By chance: the "
        "same against the half of another query."
    )
    if kept := failures.itself(answered):
        about += f" For {kept:.1f} % of the queries the first result is the reference itself, which this protocol keeps in the gallery."
    return Table("Over-reliance", about, [head, *rows])


def _move_table(answered: Answered) -> Table:
    move = failures.moves(answered)
    assert move is not None
    labels = failures.rank_labels()
    about = (
        f"Queries by the rank of the target with the reference alone (rows) and with the caption (columns). Median rank {move.before:g} "
        f"before and {move.after:g} after; the caption brings {move.better:.1f} % of the targets nearer to the top and {move.worse:.1f} % "
        "further down."
    )
    rows = [[label, *map(str, row)] for label, row in zip(labels, move.table, strict=True)]
    return Table("Rank of the target before and after", about, [["before \\ after", *labels], *rows])


def _hub_table(answered: Answered) -> Table:
    found = failures.hubs(answered)
    about = (
        f"Pictures that stand among the first {failures.LIST} of the most queries. The most frequent hundredth of the gallery has "
        f"{found.share:.1f} % of all these places; {found.never:.1f} % of the gallery is never there. Skewness {found.skewness:.2f}; "
        f"that of the right answers is {found.answers_skewness:.2f}."
    )
    rows = [[hub.name, str(hub.lists), f"{100 * hub.lists / len(answered.ranks):.1f}", str(hub.right)] for hub in found.top]
    return Table(HUBS, about, [["picture", "queries", "percent", "of them right"], *rows])


def draw_slices(answered: Answered) -> Drawing:
    """R@1 of every slice with its interval, those of one property below each other; small ones are left out."""
    every, *parts = failures.slices(answered)
    shown = [one for one in parts if one.queries >= FEW]
    names = list(dict.fromkeys(one.name for one in shown))
    labels = {one: f"{one.value} ({one.queries})" for one in shown}
    left = 24 + max([length(label, SMALL) for label in labels.values()], default=0.0)
    drawing = Drawing(left + PANEL + 40, 60 + ROW * (len(shown) + 2 * len(names)))
    ticks = linear_ticks(0, max([one.high for one in shown], default=100.0))
    axis = Axis(ticks, left, left + PANEL)
    bottom = 20 + ROW * (len(shown) + 2 * len(names))
    for tick in ticks:
        drawing.line(axis.place(tick), 30, axis.place(tick), bottom, GREY)
        drawing.text(axis.place(tick), bottom + 14, f"{tick:g}", SMALL, "m")
    overall = axis.place(every.recall)
    drawing.line(overall, 30, overall, bottom, "#d55e00", 1.5)
    drawing.text(left + PANEL, 14, f"{answered.evaluation.name}: R@1 (line: all queries)", SMALL, "r")
    y = 30.0
    for name in names:
        y += ROW
        drawing.text(12, y, name, 14)
        for one in (one for one in shown if one.name == name):
            y += ROW
            _draw_slice(drawing, axis, y, one, labels[one])
        y += ROW
    return drawing


def _draw_slice(drawing: Drawing, axis: Axis, y: float, one: Slice, label: str) -> None:
    drawing.text(axis.start - 10, y, label, SMALL, "r")
    drawing.line(axis.place(one.low), y, axis.place(one.high), y, BLUE, 2)
    drawing.dot(axis.place(one.recall), y, 4, BLUE)


def write(groups: Sequence[Answered], pictures: Mapping[str, Picture], about: Sequence[str], folder: Path) -> list[Path]:
    """Write ``failures.html``, ``failures.md``, ``failures.csv`` and a picture of the best and of the worst queries of each set.

    Args:
        groups: the sets.
        pictures: of the data set, by name.
        about: sentences about where the result comes from.
        folder: to write into; each file is whole or not there.
    """
    page = Page("Where the model fails", about)
    lines = ["# Where the model fails", "", *about, ""]
    files: list[Path] = []
    for answered in groups:
        stem = answered.evaluation.name.replace("/", "-")
        page.heading(answered.evaluation.name)
        page.text(
            f"{len(answered.ranks):,} queries, {len(answered.evaluation.gallery):,} gallery pictures. {answered.evaluation.protocol}",
            "note",
        )
        lines += [f"## {answered.evaluation.name}", ""]
        for table in tables(answered):
            _add(page, table, pictures)
            lines += _markdown(table)
            if table.title == SLICES:
                drawing = draw_slices(answered)
                page.svg(drawing.to_svg())
                files.append(_save(folder / f"{stem}-recall.png", drawing.save_png))
        for name, chosen in (("worst", failures.worst(answered, ROWS)), ("best", failures.best(answered, ROWS))):
            if chosen:
                grid = result_grid(answered.evaluation, answered.ranks, answered.lists, pictures, chosen)
                page.heading(f"The {name} queries", 3)
                page.text(CHOSEN[name], "note")
                page.picture(grid, f"the {name} queries of {answered.evaluation.name}")
                files.append(_save(folder / f"{stem}-{name}.png", partial(grid.save, format="PNG")))
    texts = {"failures.html": page.html(), "failures.md": "\n".join(lines), "failures.csv": _csv(groups)}
    return [*(_save(folder / name, partial(_write_text, text=text)) for name, text in texts.items()), *files]


def _add(page: Page, table: Table, pictures: Mapping[str, Picture]) -> None:
    page.heading(table.title, 3)
    page.text(table.about)
    head, *rows = table.cells
    if table.title == HUBS:
        page.table(["", *head], [[_thumb(pictures[row[0]]), *row] for row in rows])
    else:
        page.table(head, rows, f"{len(rows)} lines" if table.title == SLICES else "")


def _thumb(picture: Picture) -> Image.Image:
    image = load_image(picture.path, picture.box)
    image.thumbnail((THUMB, THUMB))
    return image


def _markdown(table: Table) -> list[str]:
    head, *rows = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in table.cells]
    lines = [head, ["---"] * len(head), *rows]
    return [f"### {table.title}", "", table.about, "", *(f"| {' | '.join(line)} |" for line in lines), ""]


def _csv(groups: Sequence[Answered]) -> str:
    """All tables in one: group, table, the row's first cells, column, value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["group", "table", "row", "column", "value"])
    for answered in groups:
        for table in tables(answered):
            head, *rows = table.cells
            keys = 2 if table.title == SLICES else 1
            for row in rows:
                for column, cell in zip(head[keys:], row[keys:], strict=True):
                    writer.writerow([answered.evaluation.name, table.title, " ".join(filter(None, row[:keys])), column, cell])
    return file.getvalue()


def _save(path: Path, make: Callable[[Path], object]) -> Path:
    replace_file(path, make)
    return path


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
