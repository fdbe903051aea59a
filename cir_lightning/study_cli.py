"""``cir study``: several arms and seeds of one question, run, watched and reported."""

from __future__ import annotations

import argparse
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cir_lightning.data_cli import Refusing
from cir_lightning.study import plan
from data_modules.errors import UserError

if TYPE_CHECKING:
    from types import FrameType

    from cir_lightning.study.folders import Run
    from cir_lightning.study.plan import Study

HELP = f"""\
usage: cir study run STUDY [--arms ARM,ARM] [--seeds N,N] [--jobs N] [--root DIR] [options of the machine]
       cir study status STUDY [--root DIR]
       cir study report STUDY [--out DIR] [--root DIR]
       cir study fit|test STUDY --task N [--root DIR] [options of the machine]

A study is a YAML file: a base, arms that lay overlays over it, seeds. STUDY is a file or one of {", ".join(plan.names())}.

  run     does what is not done yet: every run is a cir fit and a cir test in <root>/<study>/<arm>/seed-<n>. Stopped or killed, it goes on
          where it was; several processes may work on one study at once. A run that another study has done is taken from there.
          --jobs    runs at a time, each with its share of the processors: small models leave most of a second one idle
  status  what is done, running, stopped, failed and not begun.
  report  means, spreads and paired differences with intervals, recall against cost: Markdown, CSV, LaTeX, PNG, SVG.
  fit, test  of one run, in this process: for job arrays (make slurm-study STUDY=...).
          --root    holds the studies; by default runs/studies

Options of the machine: --data.root DIR, --trainer.devices N and the like, for every run."""


class _Parser(Refusing, argparse.ArgumentParser):
    pass


def run(argv: list[str]) -> int:
    """Run one command.

    Args:
        argv: its name, that of a study, and options.

    Returns:
        The exit code.

    Raises:
        UserError: there is no such command or study, or the command's own reasons.
    """
    if not argv or set(argv) & {"-h", "--help"}:
        print(HELP)
        return 0
    command, *rest = argv
    commands = {"run": _run, "status": _status, "report": _report, "fit": _task, "test": _task}
    if command not in commands:
        raise UserError(f"unknown command 'study {command}'; commands are {', '.join(f'study {name}' for name in commands)}")
    parser = _Parser(prog=f"cir study {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("study")
    parser.add_argument("--root", type=Path, default=Path("runs/studies"))
    if command == "run":
        parser.add_argument("--jobs", type=int, default=1)
    for option in {"run": ("--arms", "--seeds"), "report": ("--out",)}.get(command, ()):
        parser.add_argument(option, default="")
    if command in {"fit", "test"}:
        parser.add_argument("--task", type=int, required=True)
    asked, others = parser.parse_known_args(rest)
    if others and command in {"status", "report"}:
        raise UserError(f"cir study {command} takes no {others[0]}; cir study --help shows what there is")
    asked.command, asked.others = command, others
    return commands[command](plan.read(asked.study), asked)


def _run(study: Study, asked: argparse.Namespace) -> int:
    from cir_lightning.study.execute import Executor, machine_options
    from cir_lightning.study.folders import runs_of

    options = machine_options(asked.others)
    arms = _chosen(asked.arms, list(study.arms), "--arms")
    seeds = _chosen(asked.seeds, [str(seed) for seed in study.seeds], "--seeds")
    runs = [run for run in runs_of(study, asked.root) if run.arm in arms and str(run.seed) in seeds]
    if asked.jobs < 1:
        raise UserError(f"--jobs={asked.jobs} is not possible; set it to 1 or more")
    signal.signal(signal.SIGTERM, _stop)
    return Executor(study, asked.root, runs, options, asked.jobs).run()


def _stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - Python's signature
    raise KeyboardInterrupt


def _chosen(given: str, there: list[str], option: str) -> list[str]:
    wanted = given.split(",") if given else there
    if unknown := [one for one in wanted if one not in there]:
        raise UserError(f"{option} {unknown[0]}: the study has {', '.join(there)}")
    return wanted


def _task(study: Study, asked: argparse.Namespace) -> int:
    from cir_lightning.study.execute import machine_options, one_process

    return one_process(study, asked.root, asked.task, asked.command, machine_options(asked.others))


def _status(study: Study, asked: argparse.Namespace) -> int:
    from cir_lightning.study.folders import RUNNING, STOPPED, runs_of

    runs = runs_of(study, asked.root)
    states = [_state(run) for run in runs]
    width = max(len(run.name) for run in runs)
    for run, state in zip(runs, states, strict=True):
        steps = run.progress() if state in {RUNNING, STOPPED} else None
        print(f"{run.name:<{width}}  {state}{f', step {steps[0]} of {steps[1]}' if steps else ''}")
    counts = Counter(state.partition(":")[0] for state in states)
    print(f"study {study.name}: " + ", ".join(f"{count} {state}" for state, count in counts.items()) + f"; in {asked.root / study.name}")
    return 0


def _state(run: Run) -> str:
    from cir_lightning.study.folders import FAILED

    state = run.state()
    return f"{state}: {run.record()['error']}" if state == FAILED else state


def _report(study: Study, asked: argparse.Namespace) -> int:
    from cir_lightning.study.outcomes import collect
    from cir_lightning.study.report import show, write

    outcomes = collect(study, asked.root)
    print(show(outcomes))
    for path in write(outcomes, Path(asked.out) if asked.out else asked.root / study.name / "report"):
        print(f"written: {path}")
    return 0
