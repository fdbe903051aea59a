"""A report as tables, for a page and for the terminal.

A table has a line per method and a block of columns per evaluation set. Sets that go into the same average stand side by side with it, as
papers print them; any other set has a table of its own. Figures with different fingerprints never share a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from posixpath import commonprefix
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cir_lightning.retrieval.report import Report, Row

_NO_FIGURE = "-"
_WIDTH = 140  # of a terminal, in characters


@dataclass(frozen=True)
class _Block:
    """The figures of one evaluation set, or of an average.

    Attributes:
        label: what tells it from the other blocks of its table; empty if there are none.
        rows: method and source -> row.
    """

    label: str
    rows: dict[tuple[str, str], Row]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows.values() for name in row.figures))

    def cell(self, line: tuple[str, str], column: str) -> str:
        figures = self.rows[line].figures if line in self.rows else {}
        return f"{figures[column]:.2f}" if column in figures else _NO_FIGURE

    def best(self, column: str) -> str:
        """The highest figure of a column as printed, so that what looks equal is marked alike; empty if there is nothing to compare."""
        figures = [row.figures[column] for row in self.rows.values() if column in row.figures]
        return f"{max(figures):.2f}" if len(figures) > 1 else ""

    @property
    def first(self) -> Row:
        """All rows say the same of their set."""
        return next(iter(self.rows.values()))

    @property
    def facts(self) -> str:
        row = self.first
        missing = f" ({row.skipped_pictures:,} more are missing)" if row.skipped_pictures else ""
        skipped = f" ({row.skipped_queries:,} more were skipped)" if row.skipped_queries else ""
        reduced = f", {row.reduced_queries:,} of them with fewer answers or look-alikes than published" if row.reduced_queries else ""
        missed = f"{row.unreachable:,} of them unreachable (counted as misses)" if row.unreachable else "all reachable"
        label = f"{self.label}: " if self.label else ""
        gallery = f"{label}{row.gallery:,} gallery pictures{missing}"
        return f"{gallery}; {row.queries:,} queries{skipped}{reduced}, {missed}; fingerprint {row.fingerprint or 'not stated'}."

    def text(self, lines: list[tuple[str, str]]) -> list[str]:
        """The label, the names of the columns and the cells, all equally wide."""
        columns = [[column, *(self.cell(line, column) for line in lines)] for column in self.columns]
        widths = [max(map(len, column)) for column in columns]
        grid = ["  ".join(column[at].rjust(width) for column, width in zip(columns, widths, strict=True)) for at in range(len(lines) + 1)]
        width = max(len(self.label), len(grid[0]))
        return [self.label.center(width), *(cells.rjust(width) for cells in grid)]


@dataclass(frozen=True)
class _Table:
    title: str
    blocks: list[_Block]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Method and source of each line."""
        return list(dict.fromkeys(line for block in self.blocks for line in block.rows))

    @property
    def caption(self) -> list[str]:
        """The protocol, the facts of each set, where published figures are printed."""
        sets = [block for block in self.blocks if block.first.average] or self.blocks  # an average has no gallery of its own
        protocols = dict.fromkeys(block.first.protocol for block in sets if block.first.protocol)
        return [
            f"Percent. Protocol: {'; '.join(protocols) or 'not stated'}.",
            *(block.facts for block in sets),
            *(f"{method}: {source}." for method, source in self.lines if source),
        ]


def to_markdown(report: Report) -> str:
    """The best figure of each column in bold."""
    parts = [f"# {_title(report)}", _origin(report)]
    for table in _tables(report):
        columns = [(block, column) for block in table.blocks for column in block.columns]
        lines = [
            ["Method", *(_escape(f"{block.label} {column}".lstrip()) for block, column in columns)],
            ["---", *("---:" for _ in columns)],
        ]
        for line in table.lines:
            cells = ((block.cell(line, column), block.best(column)) for block, column in columns)
            lines.append([_escape(line[0]), *(f"**{cell}**" if cell == best else cell for cell, best in cells)])
        grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts += [f"## {table.title}", grid, "\n".join(f"- {sentence}" for sentence in table.caption)]
    parts += [f"**Note:** {note}" for note in report.notes]
    return "\n\n".join(parts) + "\n"


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")


def to_text(report: Report) -> str:
    """The same tables for the terminal, in aligned columns; blocks that are too wide to stand side by side stand below each other."""
    parts = [f"{_title(report)}\n{_origin(report)}"]
    for table in _tables(report):
        blocks = [block.text(table.lines) for block in table.blocks]
        grid = _grid(table.lines, blocks)
        if max(map(len, grid)) > _WIDTH:
            grid = [line for block in blocks for line in _grid(table.lines, [block])]
        parts.append("\n".join([table.title, *grid, *(f"  {sentence}" for sentence in table.caption)]))
    parts += [f"Note: {note}" for note in report.notes]
    return "\n\n".join(parts) + "\n"


def _grid(lines: list[tuple[str, str]], blocks: list[list[str]]) -> list[str]:
    names = ["", "Method", *(method for method, _ in lines)]
    left = [name.ljust(max(map(len, names))) for name in names]
    grid = [("  " + "   ".join(cells)).rstrip() for cells in zip(left, *blocks, strict=True)]
    return grid if grid[0] else grid[1:]


def _tables(report: Report) -> list[_Table]:
    """Tables and their blocks in order of appearance."""
    averages = {row.average for row in report.rows if row.average}
    tables: dict[tuple[str, str], dict[tuple[str, str], dict[tuple[str, str], Row]]] = {}
    for row in report.rows:
        name = row.average or row.group
        table = tables.setdefault((name, "" if name in averages else row.fingerprint), {})
        table.setdefault((row.group, row.fingerprint), {})[row.line] = row
    return [_table(name, blocks) for (name, _), blocks in tables.items()]


def _table(name: str, blocks: dict[tuple[str, str], dict[tuple[str, str], Row]]) -> _Table:
    paths = [group.split("/") for group, _ in blocks]
    shared = commonprefix(paths)
    if len(paths) == 1:
        return _Table(name, [_Block("", rows) for rows in blocks.values()])
    labels = ["/".join(path[len(shared) :]) or "average" for path in paths]
    return _Table("/".join(shared) or name, [_Block(label, rows) for label, rows in zip(labels, blocks.values(), strict=True)])


def _title(report: Report) -> str:
    return f"{report.benchmark}, {report.split}"


def _origin(report: Report) -> str:
    source = f"cir-lightning {report.version}" + (f" (commit {report.commit})" if report.commit else "")
    return f"Checkpoint: {report.checkpoint or 'none'}; {source}; seed {report.seed}."
