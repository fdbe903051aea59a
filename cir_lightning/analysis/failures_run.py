"""``cir analyze failures``: from a checkpoint, by a test run of its own, or from the ranked lists that ``cir predict`` wrote."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from cir_lightning.analysis.alone import rank_alone
from cir_lightning.analysis.failures import Answered, Halves
from cir_lightning.analysis.failures_page import write
from cir_lightning.lightning_cli import CIRCLI, Parsed, run
from cir_lightning.predictions import recall_ranks
from cir_lightning.results import ResultPictures, ResultsTable, source_commit
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer

    from cir_lightning.module import CIRModule
    from cir_lightning.retrieval.ranking import Ranking
    from data_modules.base import CIRDataModule, Split
    from data_modules.records import EvaluationSet, Query

SUBCOMMANDS = {"val": "validate", "test": "test"}


class FailureReport(Callback):
    """In place of the results table: encodes the halves of the queries, too, and writes the analysis.

    Args:
        folder: the run folder; the files go to ``<folder>/analysis/failures-<split>``.
        checkpoint: what was loaded.
    """

    def __init__(self, folder: Path, checkpoint: str) -> None:
        self.folder, self.checkpoint = folder, checkpoint

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of ``--split val``."""
        self._write(trainer, pl_module, "val")  # type: ignore[arg-type]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of ``--split test``."""
        self._write(trainer, pl_module, "test")  # type: ignore[arg-type]

    def _write(self, trainer: Trainer, module: CIRModule, split: Split) -> None:
        alone = dict(rank_alone(module, split))  # on every process, as a base that is sharded needs all of them
        if not trainer.is_global_zero:
            return
        groups = []
        for name, (evaluation, ranking) in module.rankings.items():
            halves = (_halves(evaluation, one) for one in alone[name])
            lists = [[evaluation.gallery[i] for i in top] for top in ranking.top.tolist()]
            groups.append(Answered(evaluation, recall_ranks(evaluation, ranking), lists, _known(module.data, evaluation), *halves))
        scored = module.data.scored(split)
        report(groups, module.data, self.checkpoint or "none (untrained)", scored, self.folder / "analysis" / f"failures-{scored}")


def _halves(evaluation: EvaluationSet, ranking: Ranking) -> Halves:
    return Halves(recall_ranks(evaluation, ranking), [evaluation.gallery[top[0]] if top else "" for top in ranking.top.tolist()])


def _known(data: CIRDataModule, evaluation: EvaluationSet) -> list[Mapping[str, tuple[str, ...]]]:
    return [data.describe(query) for query in evaluation.queries]


def report(groups: Sequence[Answered], data: CIRDataModule, source: str, split: str, folder: Path) -> None:
    """Write the analysis and say where it is."""
    about = [f"{type(data).__name__}, {split}; {source}; commit {source_commit() or 'unknown'}; seed {data.seed}."]
    files = write(groups, {picture.name: picture for picture in data.pictures}, about, folder)
    print(f"failures: {files[0]}; beside it {', '.join(path.name for path in files[1:])}")


class Failures(CIRCLI):
    """``cir test`` or ``cir validate`` with another end."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the analysis in place of results table and pictures."""
        trainer: Any = super().instantiate_trainer(**kwargs)  # Lightning does not declare its callbacks
        ours = next(callback for callback in trainer.callbacks if isinstance(callback, ResultsTable))
        others = [callback for callback in trainer.callbacks if not isinstance(callback, ResultsTable | ResultPictures)]
        trainer.callbacks = [*others, FailureReport(ours.folder, ours.checkpoint)]
        return trainer  # type: ignore[no-any-return]


def from_checkpoint(argv: Sequence[str], split: str) -> None:
    """Encode a split's queries, their halves and its gallery.

    Args:
        argv: options of ``cir test``.
        split: ``val`` or ``test``.

    Raises:
        UserError: see ``cir test``.
    """
    run([SUBCOMMANDS[split], *argv, "--model.yardsticks", "false"], Failures)


def from_predictions(file: Path, argv: Sequence[str]) -> None:
    """Read ranked lists.

    Args:
        file: that ``cir predict`` wrote.
        argv: options of ``cir predict`` that name the data set: ``--ckpt_path`` or ``--config``.

    Raises:
        UserError: the file is damaged, or of other queries; it has no queries with answers.
    """
    records = read_predictions(file)
    cli = run(["predict", *argv], Parsed)
    if cli is None:
        return
    data = cli.datamodule
    data.prepare_data()
    data.setup()
    groups = list(answered_sets(records, data, file))
    split = "val" if groups[0].evaluation in data.benchmark.val else "test"
    report(groups, data, f"ranked lists of {file}", split, file.parent / "analysis" / f"failures-{_name(file)}")


def read_predictions(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> query id -> the line.

    Raises:
        UserError: there is no such file, it is empty, or a line is damaged.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--predictions {file}: cannot be read ({error}); give a predictions.jsonl that cir predict wrote") from error
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            _check(record)
            found.setdefault(record["group"], {})[record["query"]] = record
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f"{file}, line {number}: no ranked list ({type(error).__name__}: {error}); run cir predict again") from error
    if not found:
        raise UserError(f"{file} is empty; run cir predict again")
    return found


def _check(record: dict[str, Any]) -> None:
    """A query, a list of names, and a rank or null.

    Raises:
        ValueError: it is something else.
        KeyError: one of them is missing.
    """
    names, rank, _ = record["names"], record["rank"], (record["reference"], record["caption"])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("names are no list of texts")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ValueError(f"rank {rank!r}")


def answered_sets(records: Mapping[str, Mapping[str, dict[str, Any]]], data: CIRDataModule, file: Path) -> Iterator[Answered]:
    """The sets of queries with what the file says of each.

    Raises:
        UserError: the file has other queries than the data set; none of them has answers.
    """
    sets = _sets(records, data, file)
    scored = [one for one in sets.values() if all(query.targets for query in one.queries)]
    if not scored:
        raise UserError(f"{file}: the answers to its queries are secret; rank val instead, with cir predict --ckpt_path RUN --split val")
    for evaluation in scored:
        mine = [records[evaluation.name][query.id] for query in evaluation.queries]
        gallery = set(evaluation.gallery)
        for query, record in zip(evaluation.queries, mine, strict=True):
            if not _agree(record, query) or record["rank"] is None or not gallery.issuperset(record["names"]):
                raise UserError(
                    f"{file}, query {query.id!r} of {evaluation.name!r}: not as {type(data).__name__} has it; run cir predict again"
                )
        yield Answered(evaluation, [record["rank"] for record in mine], [record["names"] for record in mine], _known(data, evaluation))


def _sets(records: Mapping[str, Mapping[str, dict[str, Any]]], data: CIRDataModule, file: Path) -> dict[str, EvaluationSet]:
    """The set of each group of lists; splits share names of sets, and may share ids of queries.

    Raises:
        UserError: no split has such queries.
    """
    every = (*data.benchmark.hidden, *data.benchmark.test, *data.benchmark.val)
    found = {}
    for name, lists in records.items():
        same = [one for one in every if one.name == name and {query.id for query in one.queries} == set(lists)]
        if not same:
            raise UserError(
                f"{file}: its queries of {name!r} are not those of {type(data).__name__} with these options; give the --config or "
                "--ckpt_path that they were predicted with"
            )
        agreeing = [sum(_agree(lists[query.id], query) for query in one.queries) for one in same]
        found[name] = same[agreeing.index(max(agreeing))]
    return found


def _name(file: Path) -> str:
    """Of the folder of the results, which is never that of the analysis of a checkpoint."""
    return file.stem if file.stem.startswith("predictions") else f"predictions-{file.stem}"


def _agree(record: Mapping[str, Any], query: Query) -> bool:
    return (record["reference"], record["caption"]) == (query.reference, query.caption)
