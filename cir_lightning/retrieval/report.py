"""The results table: figures of several methods under several protocols, for the terminal, a paper, a spreadsheet and a program.

Figures are in percent. Methods share a table only if they were scored on the same queries, gallery and protocol (equal fingerprints).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd  # type: ignore[import-untyped]

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NO_FIGURE = "-"


@dataclass(frozen=True)
class Row:
    """The figures of one method on one evaluation set.

    Attributes:
        method: what was evaluated: ``CIR-LVLM (this run)``, ``random``.
        group: name of the evaluation set.
        figures: metric name -> percent.
        queries: how many queries the figures are means of.
        gallery: how many pictures the gallery has.
        unreachable: how many queries have no right answer in their gallery; each counts as a miss.
        fingerprint: of the evaluation set; figures with different ones cannot be compared.
    """

    method: str
    group: str
    figures: dict[str, float]
    queries: int
    gallery: int
    unreachable: int
    fingerprint: str


@dataclass(frozen=True)
class Report:
    """The results of one test run and where they come from.

    Attributes:
        benchmark: name of the data set.
        split: the part of it that was scored.
        checkpoint: the checkpoint file; empty if none was loaded.
        version: version of this package.
        commit: commit of the source tree; empty if unknown.
        seed: of the run.
        rows: one per method and evaluation set.
        notes: sentences that a reader of the figures has to know.
    """

    benchmark: str
    split: str
    checkpoint: str
    version: str
    commit: str
    seed: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    """Methods that can be compared: their rows, a line of cells per row below a header, and the best figure of each column."""

    rows: list[Row]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.figures))

    @property
    def header(self) -> list[str]:
        return ["Method", *self.columns]

    @property
    def caption(self) -> str:
        row = self.rows[0]
        missed = f", {row.unreachable} of them unreachable (counted as misses)" if row.unreachable else ", all reachable"
        return f"Gallery {row.gallery:,} pictures; {row.queries:,} queries{missed}; protocol {row.fingerprint or 'not stated'}. Percent."

    def cells(self, row: Row) -> list[str]:
        return [row.method, *(f"{row.figures[name]:.1f}" if name in row.figures else _NO_FIGURE for name in self.columns)]

    def best(self, name: str) -> str:
        """The highest figure of a column as printed, so that what looks equal is marked alike; empty if there is nothing to compare."""
        figures = [row.figures[name] for row in self.rows if name in row.figures]
        return f"{max(figures):.1f}" if len(figures) > 1 else ""


def to_markdown(report: Report) -> str:
    """One table per evaluation set, a line per method, the best figure of each column in bold."""
    parts = [f"# {_title(report)}", _origin(report)]
    for table in _tables(report):
        best = ["", *(table.best(name) for name in table.columns)]
        lines = [table.header, ["---", *("---:" for _ in table.columns)]]
        for row in table.rows:
            cells = [cell.replace("|", "\\|") for cell in table.cells(row)]
            lines.append([f"**{cell}**" if cell == mark else cell for cell, mark in zip(cells, best, strict=True)])
        grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts += [f"## {table.rows[0].group}", grid, table.caption]
    if report.notes:
        parts.append("\n".join(f"- {note}" for note in report.notes))
    return "\n\n".join(parts) + "\n"


def to_text(report: Report) -> str:
    """The same tables for the terminal, in aligned columns."""
    parts = [f"{_title(report)}\n{_origin(report)}"]
    for table in _tables(report):
        lines = [table.header, *(table.cells(row) for row in table.rows)]
        first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
        grid = [
            "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
            for name, *cells in lines
        ]
        parts.append("\n".join([table.rows[0].group, *(f"  {line}".rstrip() for line in grid), f"  {table.caption}"]))
    parts += [f"Note: {note}" for note in report.notes]
    return "\n\n".join(parts) + "\n"


def to_frame(report: Report) -> pd.DataFrame:
    """One row per method and evaluation set, a column per figure (NaN where a method has none), and the columns of the origin."""
    origin = {key: value for key, value in asdict(report).items() if key not in {"rows", "notes"}}
    records = []
    for row in report.rows:
        fields = asdict(row)
        figures = fields.pop("figures")
        records.append({"method": fields.pop("method"), "group": fields.pop("group"), **figures, **fields, **origin})
    counts_and_origin = ["queries", "gallery", "unreachable", "fingerprint", *origin]
    figure_names = dict.fromkeys(name for row in report.rows for name in row.figures)
    return pd.DataFrame(records, columns=["method", "group", *figure_names, *counts_and_origin])


def write(report: Report, folder: Path) -> dict[str, Path]:
    """Write ``results.md``, ``results.csv`` and ``results.json`` into a folder; a reader never sees a half-written one.

    Returns:
        file name -> path.
    """
    texts = {
        "results.md": to_markdown(report),
        "results.csv": to_frame(report).to_csv(index=False),
        "results.json": json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        temporary = folder / f".{name}.{os.getpid()}"
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
    return {name: folder / name for name in texts}


def read(path: Path) -> Report:
    """Read a report back from its ``results.json``.

    Raises:
        UserError: the file cannot be read, is not JSON, or is not a report.
    """
    remedy = "give a results.json that `cir test` wrote, or run `cir test` again"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a results file ({error}); {remedy}") from error
    try:
        return Report(**{**data, "rows": tuple(_row(row) for row in data["rows"]), "notes": tuple(data["notes"])})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}, line 1: JSON, but not a report ({type(error).__name__}: {error}); {remedy}") from error


def _row(data: dict[str, Any]) -> Row:
    return Row(**{**data, "figures": {name: float(value) for name, value in data["figures"].items()}})


def _tables(report: Report) -> Iterator[_Table]:
    """Rows by evaluation set in order of appearance; equal names with different fingerprints give separate tables."""
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in report.rows:
        tables.setdefault((row.group, row.fingerprint), []).append(row)
    return (_Table(rows) for rows in tables.values())


def _title(report: Report) -> str:
    return f"{report.benchmark}, {report.split}"


def _origin(report: Report) -> str:
    source = f"cir-lightning {report.version}" + (f" (commit {report.commit})" if report.commit else "")
    return f"Checkpoint: {report.checkpoint or 'none'}; {source}; seed {report.seed}."
