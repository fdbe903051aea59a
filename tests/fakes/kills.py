"""Runs that are killed and go on: ``python -m fakes.kills FOLDER KILLS SIGNAL``.

One slow import, then every run is a fork of this process that types ``cir fit``. A run is killed after a random time, started again, killed
again ... until one reaches its end. Prints a line for every kill: the steps that were done, and what it was doing.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from cir_lightning import checkpoint_io
from cir_lightning.checkpoint import read_checkpoint
from cir_lightning.cli import main
from cir_lightning.lightning_cli import run as run  # imports what every fork would else import
from fakes.runs import write_recipe

STEPS = 12
OPTIONS = ["--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "3", "--trainer.enable_progress_bar", "false"]
OPTIONS += ["--model.encoder.init_args.connector.init_args.dropout", "0.2", "--model.loss.memory", "40", "--ckpt_path", "last"]


def fit(folder: Path, log: Path, *, slow: bool) -> int:
    """Start ``cir fit`` in a fork; its process id.

    Args:
        folder: with ``tiny.yaml``.
        log: what it says.
        slow: whether every checkpoint takes a while to be written, so that it can be killed meanwhile.
    """
    process = os.fork()
    if process:
        return process
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    if slow:
        written = checkpoint_io.torch.save

        def save(checkpoint: object, file: object) -> None:
            written(checkpoint, file)
            file.flush()  # type: ignore[attr-defined]
            time.sleep(0.4)

        checkpoint_io.torch.save = save  # type: ignore[assignment]
    code = main(["fit", "--config", str(folder / "tiny.yaml"), *OPTIONS])
    os._exit(code)


def run_to_the_end(folder: Path, log: Path, kills: int, how: signal.Signals, lasts: float, draw: random.Random) -> int:
    """Kill until so many kills have hit a running process, then let it finish; how many of them left a checkpoint half written.

    Args:
        folder: with ``tiny.yaml``.
        log: what the runs say.
        kills: how many.
        how: the signal.
        lasts: how long an undisturbed run takes, seconds.
        draw: random numbers.
    """
    hit = halves = 0
    for number in range(3 * kills):
        if hit == kills:
            break
        process = fit(folder, log, slow=number % 2 == 1)
        time.sleep(draw.uniform(0.3, 0.8) * lasts)
        done, _ = os.waitpid(process, os.WNOHANG)
        if not done:
            os.kill(process, how)
            left = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            assert left in (-how, 128 + how, 0), left  # 0: it was at its end
            hit += left != 0
        found = folder / "run" / "checkpoints"
        half = [path.name for path in found.glob(".*")] if found.is_dir() else []
        halves += bool(half)
        steps = [read_checkpoint(path)["global_step"] for path in sorted(found.glob("*.ckpt")) if path.name != "best.ckpt"]
        print(f"kill {number}: {'running' if not done else 'ended before'}, checkpoints of steps {steps}, half written {half}", flush=True)
        if steps and max(steps) == STEPS:  # finished: from the beginning again
            shutil.rmtree(folder / "run")
    assert hit == kills
    _, status = os.waitpid(fit(folder, log, slow=False), 0)
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()
    return halves


def start(folder: Path, kills: int, how: signal.Signals) -> None:
    """An undisturbed run in ``whole``, one that is killed in ``killed``."""
    lasts = 0.0
    for name, count in (("whole", 0), ("killed", kills)):
        (folder / name).mkdir()
        write_recipe(folder / name)
        begun = time.monotonic()
        halves = run_to_the_end(folder / name, folder / f"{name}.log", count, how, lasts, random.Random(0))
        lasts = time.monotonic() - begun
        print(f"{name}: {count} kills, {lasts:.1f} s, checkpoints half written: {halves}", flush=True)


def run_killed(folder: Path, kills: int, how: str) -> int:
    """An undisturbed run and one that is killed must end with the same bits; how many kills left a checkpoint half written.

    Args:
        folder: new.
        kills: how many.
        how: name of the signal.
    """
    command = [sys.executable, "-m", "fakes.kills", str(folder), str(kills), how]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("last.ckpt", "best.ckpt"):
        whole, killed = (read_checkpoint(folder / run_ / "run" / "checkpoints" / name) for run_ in ("whole", "killed"))
        assert whole["global_step"] == killed["global_step"]
        assert all(torch.equal(tensor, killed["state_dict"][key]) for key, tensor in whole["state_dict"].items())
    assert not list((folder / "killed" / "run" / "checkpoints").glob(".*"))
    return int(run.stdout.split()[-1])


if __name__ == "__main__":
    start(Path(sys.argv[1]), int(sys.argv[2]), signal.Signals[sys.argv[3]])
