"""What a run leaves for a reader: the results table with its yardsticks, pictures of results."""

from __future__ import annotations

import csv
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from cir_lightning import __version__
from cir_lightning.pictures import FIRST, result_grid, spread
from cir_lightning.predictions import query_table
from cir_lightning.retrieval import report
from cir_lightning.retrieval.figures import score
from cir_lightning.retrieval.ranking import Ranking, rank
from cir_lightning.retrieval.tables import to_text
from cir_lightning.storage import replace_file
from cir_lightning.study.captions import QUERIES
from cir_lightning.yardsticks import Yardsticks
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning.pytorch import LightningModule, Trainer

    from cir_lightning.module import CIRModule
    from data_modules.base import Split
    from data_modules.records import EvaluationSet, Published

COMBINER = "late-fusion combiner"
ROWS = 8  # queries per picture grid


def make_row(method: str, evaluation: EvaluationSet, ranking: Ranking) -> report.Row:
    """The figures of one method under one protocol."""
    own_galleries = [len(query.members) for query in evaluation.queries if evaluation.members_only]
    return report.Row(
        method=method,
        group=evaluation.name,
        figures=score(ranking, evaluation),
        queries=len(evaluation.queries),
        gallery=max(own_galleries, default=len(evaluation.gallery)),
        unreachable=ranking.unreachable,
        fingerprint=evaluation.fingerprint,
        protocol=evaluation.protocol,
        average=evaluation.average,
        skipped_queries=evaluation.skipped_queries,
        skipped_pictures=evaluation.skipped_pictures,
    )


def published_rows(own: report.Row, evaluation: EvaluationSet) -> list[report.Row]:
    """What papers report under the same protocol, beside a row of our own."""
    return [replace(own, method=_label(paper), figures=dict(paper.figures), source=paper.source) for paper in evaluation.published]


def as_printed(row: report.Row, sets: Iterable[EvaluationSet]) -> report.Row:
    """A row of averages with the figures that the paper prints, where it prints them: papers average before they round."""
    printed = (paper.average for one in sets if one.average == row.group for paper in one.published if _label(paper) == row.method)
    return replace(row, figures=row.figures | dict(next(printed, ())))


def _label(paper: Published) -> str:
    return f"{paper.method} (published)"


def sibling_rows(folder: Path, label: str, fingerprints: set[str]) -> tuple[report.Row, ...]:
    """Rows of the newest run beside this one whose method is ``label`` and whose evaluation sets are the same.

    Args:
        folder: results folder of this run: ``runs/<name>/<split>``.
        label: method name without remarks.
        fingerprints: of this run's evaluation sets.
    """
    files = sorted(folder.parent.parent.glob(f"*/{folder.name}/results.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files:
        try:
            rows = report.read(path).rows
        except UserError:
            continue
        found = tuple(row for row in rows if row.method == label and row.fingerprint in fingerprints)
        if found and path.parent != folder:
            return found
    return ()


class ResultsTable(Callback):
    """Prints the table at the end of every command; that of ``cir validate`` and ``cir test`` is written, too: Markdown, CSV and JSON.

    ``queries.csv`` beside it has each query's rank.

    Args:
        folder: the run folder; the files go to ``<folder>/<split>``.
        checkpoint: what was loaded.
    """

    def __init__(self, folder: Path, checkpoint: str) -> None:
        self.folder, self.checkpoint = folder, checkpoint

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Table of ``cir validate``."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")  # type: ignore[arg-type]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Table of ``cir test``."""
        self._write(trainer, pl_module, "test")  # type: ignore[arg-type]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Figures of the last validation of ``cir fit``."""
        module: CIRModule = pl_module  # type: ignore[assignment]
        if trainer.is_global_zero and module.rankings:
            print("\n" + to_text(self._report(module, "val", f"step {module.ranked_at}")))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Say what to do next, also where a resumed run had nothing left to train."""
        if trainer.is_global_zero:
            print(f"trained: {self.folder}; score it with cir test --ckpt_path {self.folder}")

    def _write(self, trainer: Trainer, module: CIRModule, split: Split) -> None:
        if not trainer.is_global_zero:
            return
        table = self._report(module, module.data.scored(split), self.checkpoint or "none (untrained)")
        if table.split != split:
            table = replace(table, notes=(f"scored on {table.split}: there is no {split} split with answers", *table.notes))
        files = report.write(table, self.folder / table.split)
        ranks = self.folder / table.split / QUERIES
        replace_file(ranks, lambda part: query_table(module).to_csv(part, index=False, quoting=csv.QUOTE_NONNUMERIC))
        print("\n" + to_text(table))
        print("results: " + ", ".join(str(path) for path in (*files.values(), ranks)))

    def _report(self, module: CIRModule, split: Split, checkpoint: str) -> report.Report:
        rows = self._rows(module, split)
        return report.Report(
            benchmark=type(module.data).__name__,
            split=split,
            checkpoint=checkpoint,
            version=__version__,
            commit=source_commit(),
            seed=module.data.seed,
            rows=rows,
            notes=self._notes(module, split, rows),
        )

    def _rows(self, module: CIRModule, split: Split) -> tuple[report.Row, ...]:
        yardsticks = Yardsticks(module) if module.yardsticks else None
        fingerprints = {evaluation.fingerprint for evaluation, _ in module.rankings.values()}
        combiner = [] if module.encoder.label == COMBINER else list(sibling_rows(self.folder / split, COMBINER, fingerprints))
        rows: list[report.Row] = []
        for evaluation, ranking in module.rankings.values():
            for name, queries, gallery in yardsticks.rank_vectors(evaluation) if yardsticks else ():
                rows.append(make_row(name, evaluation, rank(queries, gallery, evaluation, top=1)))
            own = make_row(module.encoder.label, evaluation, ranking)
            papers = published_rows(own, evaluation) if report.is_official(evaluation, split, module.data.official) else []
            rows += [*papers, *(row for row in combiner if row.group == evaluation.name), own]
        sets = [evaluation for evaluation, _ in module.rankings.values()]
        return (*rows, *(as_printed(row, sets) for row in report.averages(rows)))

    @staticmethod
    def _notes(module: CIRModule, split: Split, rows: tuple[report.Row, ...]) -> tuple[str, ...]:
        notes = []
        if skipped := module.data.benchmark.skipped_triplets:
            notes.append(f"{skipped:,} training triplets are left out because pictures are missing")
        sets = [evaluation for evaluation, _ in module.rankings.values()]
        if others := [one.name for one in sets if one.published and not report.is_official(one, split, module.data.official)]:
            notes.append(f"{', '.join(others)}: not the published counts, so no published figures can stand beside these")
        if all(row.method != COMBINER for row in rows):
            notes.append(
                f"no row for the {COMBINER}: no run of it on these queries lies beside this one; make one with cir fit, this run's "
                "--config and --config combiner.yaml, and score it with cir test"
            )
        return tuple(notes)


class ResultPictures(Callback):
    """Picture grids: to TensorBoard at every validation, as PNG files beside the results at the end.

    Args:
        folder: the run folder; the files go to ``<folder>/<split>/<group>.png``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Grids of the val split."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")  # type: ignore[arg-type]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Grids of the test split."""
        if trainer.is_global_zero:
            self._draw(trainer, pl_module, pl_module.data.scored("test"))  # type: ignore[arg-type,union-attr,operator]

    def _draw(self, trainer: Trainer, module: CIRModule, split: Split) -> None:
        pictures = {picture.name: picture for picture in module.data.pictures}
        for name, (evaluation, ranking) in module.rankings.items():
            lists = [[evaluation.gallery[i] for i in top] for top in ranking.top[:, :FIRST].tolist()]
            grid = result_grid(evaluation, ranking.ranks.tolist(), lists, pictures, spread(len(evaluation.queries), ROWS))
            file = self.folder / split / f"{name.replace('/', '-')}.png"
            replace_file(file, partial(grid.save, format="PNG"))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"{split}/{name}", np.asarray(grid), trainer.global_step, dataformats="HWC")
            if trainer.state.fn != "fit":
                print(f"pictures: {file}")


def source_commit() -> str:
    """Commit of the source tree, if it is one; with ``+changes`` if files differ from it."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    describe = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty=+changes"]  # others may be committing
    run = subprocess.run(describe, capture_output=True, text=True, check=False)
    return run.stdout.strip()
