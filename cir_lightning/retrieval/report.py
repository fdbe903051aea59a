"""The results of a run: figures of several methods under several protocols, for a paper, a spreadsheet and a program.

Figures are in percent. They can be compared only if they are of the same queries, gallery and protocol (equal fingerprints).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd  # type: ignore[import-untyped]

from cir_lightning.retrieval.tables import to_markdown
from cir_lightning.storage import replace_file
from data_modules.errors import UserError
from data_modules.json_text import parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from data_modules.records import EvaluationSet

_SUMS = ("queries", "unreachable", "skipped_queries", "reduced_queries")
_LARGEST = ("gallery", "skipped_pictures")  # sets of one average may share their pictures


@dataclass(frozen=True)
class Row:
    """The figures of one method on one evaluation set.

    Attributes:
        method: what was evaluated: ``CIR-LVLM (this run)``, ``random``.
        group: name of the evaluation set.
        figures: metric name -> percent.
        queries: how many queries the figures are means of.
        gallery: how many pictures the gallery has; the largest one where each query has its own.
        unreachable: how many queries have no right answer in their gallery; each counts as a miss.
        fingerprint: of the evaluation set; figures with different ones cannot be compared.
        protocol: the protocol in words; empty if it is not stated.
        average: name of the mean that this row goes into; empty if there is none.
        source: where a published figure is printed; empty if it was measured.
        skipped_queries: queries that were left out because pictures are missing.
        skipped_pictures: gallery pictures that were left out because they are missing.
        reduced_queries: queries that lost further targets or members because these are missing.
    """

    method: str
    group: str
    figures: dict[str, float]
    queries: int
    gallery: int
    unreachable: int
    fingerprint: str
    protocol: str = ""
    average: str = ""
    source: str = ""
    skipped_queries: int = 0
    skipped_pictures: int = 0
    reduced_queries: int = 0

    @property
    def line(self) -> tuple[str, str]:
        """Rows with the same one are of the same method."""
        return self.method, self.source

    @property
    def incomplete(self) -> bool:
        """Whether pictures are missing, so that figures of others cannot stand beside these."""
        return self.skipped_queries + self.skipped_pictures > 0


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


def is_official(evaluation: EvaluationSet, part: str, official: Mapping[str, int]) -> bool:
    """Whether a set has as many queries and pictures as were published for this part (``val``, ``test`` or ``hidden``) of the benchmark."""
    counts = {"queries": len(evaluation.queries), "gallery": len(evaluation.gallery)}
    return all(official.get(f"{part}/{evaluation.name} {what}", count) == count for what, count in counts.items())


def averages(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows of the unweighted means over all sets with the same ``average``, for every method that was scored on all of them.

    Numbers of queries are sums over the sets, those of pictures the largest of them; figures are those that the method has on every set.
    """
    out = []
    for name in dict.fromkeys(row.average for row in rows if row.average):
        parts = [row for row in rows if row.average == name]
        sets = {(row.group, row.fingerprint) for row in parts}
        for line in dict.fromkeys(row.line for row in parts):
            mine = {(row.group, row.fingerprint): row for row in parts if row.line == line}
            if len(mine) == len(sets):
                out.append(_mean(name, list(mine.values())))
    return tuple(out)


def _mean(name: str, rows: list[Row]) -> Row:
    common = [figure for figure in rows[0].figures if all(figure in row.figures for row in rows)]
    return replace(
        rows[0],
        group=name,
        average="",
        figures={figure: fmean(row.figures[figure] for row in rows) for figure in common},
        fingerprint=hashlib.sha256(" ".join(row.fingerprint for row in rows).encode()).hexdigest()[:16],
        protocol="; ".join(dict.fromkeys(row.protocol for row in rows if row.protocol)),
        **{count: sum(getattr(row, count) for row in rows) for count in _SUMS},
        **{count: max(getattr(row, count) for row in rows) for count in _LARGEST},
    )


def to_frame(report: Report) -> pd.DataFrame:
    """One row per method and evaluation set, a column per figure (NaN where a method has none), and all that a row and the report say.

    A published row has no checkpoint, version, commit and seed.
    """
    origin = {key: value for key, value in asdict(report).items() if key not in {"rows", "notes"}}
    elsewhere = dict.fromkeys(origin, "") | {"benchmark": report.benchmark, "split": report.split}
    figures = dict.fromkeys(name for row in report.rows for name in row.figures)
    facts = [field.name for field in fields(Row) if field.name not in {"method", "group", "figures"}]
    records = [{**asdict(row), **row.figures, **(elsewhere if row.source else origin)} for row in report.rows]
    return pd.DataFrame(records, columns=["method", "group", *figures, *facts, *origin])


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
    for name, text in texts.items():
        replace_file(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
    return {name: folder / name for name in texts}


def read(path: Path) -> Report:
    """Read a report back from its ``results.json``.

    Raises:
        UserError: the file cannot be read, is not JSON, or is not a report.
    """
    remedy = "give a results.json that `cir test` wrote, or run `cir test` again"
    try:
        data = parse(path.read_text(encoding="utf-8"), path, remedy)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a results file ({error}); {remedy}") from error
    try:
        return Report(**{**data, "rows": tuple(_row(row) for row in data["rows"]), "notes": tuple(data["notes"])})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}, line 1: JSON, but not a report ({type(error).__name__}: {error}); {remedy}") from error


def _row(data: dict[str, Any]) -> Row:
    return Row(**{**data, "figures": {name: float(value) for name, value in data["figures"].items()}})
