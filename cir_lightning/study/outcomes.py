"""What the runs of a study gave: read from their folders, and by arm and figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cir_lightning.study.captions import QUERIES, slices_of
from cir_lightning.study.folders import DONE, runs_of
from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from cir_lightning.retrieval.report import Report
    from cir_lightning.study.captions import Slices
    from cir_lightning.study.folders import Run
    from cir_lightning.study.plan import Study

TIMES = {"fit": "training s", "test": "test s"}


class Outcome(NamedTuple):
    """One finished run.

    Attributes:
        arm: of the study.
        seed: of the run.
        figures: such as ``emoji/seen R@1`` -> percent.
        costs: such as ``GFLOP per query`` -> a number.
        commit: of the source tree that did it; empty if unknown.
        scored: what the figures are of: data set, part, and a fingerprint for each group.
        slices: R@1 by what captions are like (:mod:`cir_lightning.study.captions`).
    """

    arm: str
    seed: int
    figures: dict[str, float]
    costs: dict[str, float]
    commit: str
    scored: tuple[str, ...]
    slices: Slices


class Outcomes(NamedTuple):
    """A study with what is done of it.

    Attributes:
        study: the plan.
        done: finished runs.
        unfinished: the others, in words.
    """

    study: Study
    done: list[Outcome]
    unfinished: list[str]

    @property
    def arms(self) -> list[str]:
        """Those with a finished run, in the plan's order."""
        there = {outcome.arm for outcome in self.done}
        return [arm for arm in self.study.arms if arm in there]

    @property
    def figures(self) -> list[str]:
        """The headline first, then the others in their order."""
        there = dict.fromkeys(figure for outcome in self.done for figure in outcome.figures)
        return list(dict.fromkeys([*(figure for figure in self.study.headline if figure in there), *there]))

    @property
    def headline(self) -> list[str]:
        """The figures that are shown first: those that the study names, if there are any of them, else the first one of each group."""
        groups = {figure.rpartition(" ")[0]: figure for figure in reversed(self.figures)}
        return [figure for figure in self.study.headline if figure in self.figures] or list(groups.values())[::-1]

    @property
    def costs(self) -> list[str]:
        """Names of what was counted and timed."""
        return list(dict.fromkeys(cost for outcome in self.done for cost in outcome.costs))

    def values(self, arm: str, name: str) -> dict[int, float]:
        """A figure or a cost of an arm, by seed."""
        runs = [outcome for outcome in self.done if outcome.arm == arm]
        return {run.seed: both[name] for run in runs if name in (both := run.figures | run.costs)}

    def sliced(self, arm: str, group: str, name: str, value: str) -> dict[int, float]:
        """R@1 of the queries of a group that have a value of a property, of an arm, by seed."""
        runs = [outcome for outcome in self.done if outcome.arm == arm]
        return {run.seed: run.slices[group, name][value] for run in runs if value in run.slices.get((group, name), {})}


def collect(study: Study, root: Path) -> Outcomes:
    """Read what there is.

    Raises:
        UserError: nothing is finished, or a folder holds something else.
    """
    from cir_lightning.retrieval.report import read

    done, unfinished = [], []
    for run in runs_of(study, root):
        if (state := run.state()) != DONE:
            unfinished.append(f"{run.name} is {state}")
        elif run.results is None:
            raise UserError(f"{run.folder} has no results.json any more; remove the folder, its run is then done again")
        else:
            done.append(_outcome(run, read(run.results), slices_of(run.results.parent / QUERIES)))
    if not done:
        raise UserError(f"study {study.name}: no run in {root / study.name} is finished; cir study run {study.name} does them")
    if len({outcome.scored for outcome in done}) > 1:
        raise UserError(f"study {study.name}: its runs were scored on different queries or galleries; remove the older ones of {root}")
    return Outcomes(study, done, unfinished)


def _outcome(run: Run, results: Report, slices: Slices) -> Outcome:
    record = run.record()
    rows = [row for row in results.rows if row.method == results.rows[-1].method]  # what was tested stands below its yardsticks
    seconds = {TIMES[command]: took for command, took in record.get("seconds", {}).items()}
    return Outcome(
        arm=run.arm,
        seed=run.seed,
        figures={f"{row.group} {name}": value for row in rows for name, value in row.figures.items()},
        costs=record.get("costs", {}) | seconds,
        commit=record.get("commit", ""),
        scored=(results.benchmark, results.split, *(f"{row.group} {row.fingerprint}" for row in rows)),
        slices=slices,
    )
