"""Doing the runs of a study: each is a ``cir fit --ckpt_path last`` and a ``cir test`` of its own, one after the other.

Several processes may work on one study; a run that is stopped, or killed, goes on where it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from threading import Event
from typing import TYPE_CHECKING, Any

import yaml

from cir_lightning.study.folders import DONE, LOG, RECORD, runs_of, same_elsewhere
from data_modules.errors import UserError
from data_modules.folders import replace_file
from data_modules.pixels import processors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cir_lightning.study.folders import Run
    from cir_lightning.study.plan import Config, Study

POLL = 1.0  # seconds between two looks at a run
FIT, TEST = "fit", "test"
MACHINE = (  # options that do not make a run another one
    "--data.root",
    "--data.init_args.root",
    "--data.num_workers",
    "--data.init_args.num_workers",
    "--trainer.accelerator",
    "--trainer.devices",
    "--trainer.num_nodes",
    "--trainer.strategy",
    "--trainer.enable_progress_bar",
)


class Executor:
    """Does what is left of a study.

    Args:
        study: the plan.
        root: holds a folder for each study.
        runs: those to be done.
        options: of the machine, for every run, such as ``--data.root DIR``.
        jobs: runs at a time, each with its share of the processors.
    """

    def __init__(self, study: Study, root: Path, runs: Sequence[Run], options: Sequence[str], jobs: int = 1) -> None:
        self.study, self.root, self.runs, self.options, self.jobs = study, root, runs, options, jobs
        self.facts: dict[str, dict[str, Any]] = {}
        self.failed: list[Run] = []
        self.at_work: dict[str, str] = {}
        self.stopping = Event()

    def run(self) -> int:
        """Do the runs; the exit code: 1 if one of them failed."""
        left = [run for run in self.runs if run.state() != DONE]
        print(f"study {self.study.name}: {len(self.runs) - len(left)} of {len(self.runs)} runs are done", flush=True)
        if not left:
            return 0
        self.prepare()
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for done in [pool.submit(self._do, run) for run in left]:
                    done.result()
            except BaseException:  # Ctrl-C or SIGTERM: runs save what there is
                self.stopping.set()
                raise
        busy = [run.name for run in left if run not in self.failed and run.state() != DONE]
        if busy:
            print(f"another process is doing {', '.join(busy)}")
        for run in self.failed:
            print(f"failed: {run.name}: {run.record()['error']}; see {run.folder / LOG}")
        return 1 if self.failed else 0

    def prepare(self) -> None:
        """Read every arm's config as ``cir fit`` does, and count what it costs.

        Raises:
            UserError: a config is refused, or says the same as another arm's.
        """
        from cir_lightning.lightning_cli import Parsed, run
        from cir_lightning.results import source_commit
        from cir_lightning.study.costs import costs_of

        seen: dict[str, str] = {}
        for arm in dict.fromkeys(one.arm for one in self.runs):
            words = self.configs_of(arm)
            try:
                cli = run([FIT, *words, *self.options], Parsed)
            except UserError as error:
                raise UserError(f"study {self.study.name}, arm {arm}: {error}") from error
            assert cli is not None
            config = cli.parser.dump(cli.config, skip_unset=False)
            if config in seen:
                raise UserError(
                    f"study {self.study.name}: the overlays of the arm {arm!r} change nothing against {seen[config]!r}: they say what is "
                    "so by default; mend them, or take one out"
                )
            seen[config] = arm
            steps = cli.config[FIT].trainer.max_steps
            self.facts[arm] = {"costs": costs_of(cli.model.encoder), "steps": steps, "commit": source_commit()}

    def configs_of(self, arm: str) -> list[str]:
        """``--config`` words; keys that are written in the study become files."""
        folder = self.root / self.study.name / arm
        return [word for at, config in enumerate(self.study.of(arm)) for word in ("--config", _as_file(config, folder, at))]

    def words_of(self, run: Run, command: str) -> list[str]:
        """The command line of a run, without the program."""
        if command == TEST:
            return [TEST, "--ckpt_path", str(run.folder), *self.options]
        own = ["--seed_everything", str(run.seed), "--trainer.default_root_dir", str(run.folder), "--ckpt_path", "last"]
        return [FIT, *self.configs_of(run.arm), *own, *self.options]

    # ---- one run ---------------------------------------------------------------------------------------------------------------

    def _do(self, run: Run) -> None:
        if self.stopping.is_set():
            return
        if not run.folder.exists() and run.folder.is_symlink():  # what it led to is gone
            run.folder.unlink()
        if not (run.folder / RECORD).exists() and (same := same_elsewhere(run, self.root)):
            self._link(run, same)
            return
        with run.lock() as held:
            if held is None or run.state() == DONE:
                return
            run.note(**self.facts[run.arm], error="")
            for command in (FIT, TEST):
                if command == FIT and self._is_trained(run):
                    continue
                if not self._child(run, command, held):
                    return
            run.note(done=True)
        self._say(run, f"done in {_span(sum(run.record()['seconds'].values()))}")

    def _link(self, run: Run, same: Path) -> None:
        """The same run was done for another study, or under another name."""
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        if run.folder.is_dir():
            for path in run.folder.iterdir():
                path.unlink()  # a lock at most
            run.folder.rmdir()
        run.folder.symlink_to(os.path.relpath(same, run.folder.parent.resolve()), target_is_directory=True)
        self._say(run, f"the same run as {same}")

    def _is_trained(self, run: Run) -> bool:
        """Whether it was stopped after its training: ``cir fit`` would refuse to go on."""
        last = run.folder / "checkpoints" / "last.ckpt"
        if not last.exists():
            return False
        from cir_lightning.checkpoint import read_checkpoint

        done, wanted = read_checkpoint(last).get("global_step", 0), self.facts[run.arm]["steps"]
        return bool(0 <= wanted <= done)

    def _child(self, run: Run, command: str, held: int) -> bool:
        """Whether it succeeded."""
        began = time.monotonic()
        with (run.folder / LOG).open("a", encoding="utf-8") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "cir_lightning.cli", *self.words_of(run, command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is passed on by this process, once
                pass_fds=[held],  # should this process be killed, the run is still held
                env={"OMP_NUM_THREADS": str(max(1, processors() // self.jobs))} | os.environ | {"COLUMNS": "120", "PYTHONUNBUFFERED": "1"},
            )
            while child.poll() is None:
                if self.stopping.wait(POLL):
                    child.terminate()
                    child.wait()
                self._show(run, _progress(run, command, began))
        run.add_seconds(command, time.monotonic() - began)
        self.at_work.pop(run.name, None)
        if child.returncode == 0 or self.stopping.is_set():
            return child.returncode == 0
        self.failed.append(run)
        run.note(error=run.complaint() if child.returncode > 0 else f"cir {command} was killed by signal {-child.returncode}")
        self._say(run, f"failed: {run.record()['error']}")
        return False

    def here(self, run: Run, command: str) -> int:
        """Do it in this process; the exit code."""
        from cir_lightning.cli import main

        return 0 if command == FIT and self._is_trained(run) else main(self.words_of(run, command))

    def _say(self, run: Run, what: str) -> None:
        """A line for a run that has ended."""
        line = f"[{1 + self.runs.index(run):{len(str(len(self.runs)))}}/{len(self.runs)}] {run.name}: {what}{self._left()}"
        print(f"\r{line}\x1b[K\n" if sys.stdout.isatty() else f"{line}\n", end="", flush=True)

    def _show(self, run: Run, what: str) -> None:
        """Of all that is at work, in the last line of a terminal."""
        self.at_work[run.name] = what
        if sys.stdout.isatty():
            line = " | ".join(f"{name}: {what}" for name, what in sorted(self.at_work.items()))
            print(f"\r{line}{self._left()}\x1b[K", end="", flush=True)

    def _left(self) -> str:
        """About how long what is not done will take, by what took how long."""
        took = [(run.arm, sum(run.record().get("seconds", {}).values())) for run in self.runs if run.record().get("done")]
        left = [run for run in self.runs if not run.record().get("done") and run not in self.failed]
        if not took or not left:
            return ""
        mean = fmean(span for _, span in took)
        arms = {arm: fmean(span for one, span in took if one == arm) for arm, _ in took}
        return f"; about {_span(sum(arms.get(run.arm, mean) for run in left) / min(self.jobs, len(left)))} left"


def _progress(run: Run, command: str, began: float) -> str:
    if command == TEST:
        return "testing"
    if not (steps := run.progress()):
        return "beginning"
    return f"step {steps[0]} of {steps[1]}, {_span(time.monotonic() - began)}"


def _span(seconds: float) -> str:
    """A time in words.

    >>> _span(7), _span(133), _span(7300)
    ('7 s', '2 min 13 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _as_file(config: Config, folder: Path, at: int) -> str:
    """A config's name; keys are written into a file of the arm's folder first."""
    if isinstance(config, str):
        return config
    path = folder / f"overlay-{at}.yaml"
    text = yaml.safe_dump(config, sort_keys=False)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
    return str(path)


def one_process(study: Study, root: Path, task: int, command: str, options: Sequence[str]) -> int:
    """Do a run's training or test in this process, which may be one of several that srun started; the exit code.

    Raises:
        UserError: there is no such task, its folder holds another run, or another process is doing it.
    """
    runs = runs_of(study, root)
    if not 0 <= task < len(runs):
        raise UserError(f"--task {task}: study {study.name} has tasks 0 to {len(runs) - 1}")
    run, executor = runs[task], Executor(study, root, [runs[task]], options)
    if run.state() == DONE:
        print(f"{run.name} is done")
        return 0
    executor.prepare()
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return executor.here(run, command)
    with run.lock() as held:
        if held is None:
            raise UserError(f"another process is doing {run.name} in {run.folder}; wait for it, or stop it")
        run.note(**executor.facts[run.arm], error="")
        began = time.monotonic()
        code = executor.here(run, command)
        run.add_seconds(command, time.monotonic() - began)
        if command == TEST and code == 0:
            run.note(done=True)
    return code


def machine_options(options: Sequence[str]) -> list[str]:
    """Options that say where and on what a run is done.

    Raises:
        UserError: one would make it another run, which belongs into the study.
    """
    for word in options:
        if word.startswith("--") and word.partition("=")[0] not in MACHINE:
            raise UserError(f"{word} would make the runs other ones; write it into the study. Options here are {', '.join(MACHINE)}")
    return list(options)
