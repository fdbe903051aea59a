"""Being asked to stop: SIGTERM (``kill``, ``scancel``, preemption) and, in a Slurm job, SIGUSR1 before its time is up.

Handlers only take note. Training stops before its next batch, on all processes at once, saves, and :func:`leave` ends the process: what was
asked to stop by SIGUSR1 asks Slurm to start its job again. Light: no torch, since it listens before anything slow is imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

asked: signal.Signals | None = None


def listen(*signals: signal.Signals) -> None:
    """Take note of these signals from now on."""
    for number in signals:
        signal.signal(number, _take_note)


def _take_note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - Python's signature
    global asked
    asked = asked or signal.Signals(number)


def in_slurm() -> bool:
    """Whether this is a process of a Slurm job that srun started."""
    return {"SLURM_JOB_ID", "SLURM_PROCID"} <= os.environ.keys()


def leave() -> int:
    """What a process that was stopped leaves with, after everything is saved.

    Returns:
        The exit code: 0 where Slurm starts the job again; else 128 and the number of the signal.
    """
    if asked is None:
        return 128 + signal.SIGINT
    if asked is not signal.SIGUSR1:
        return 128 + asked
    return requeue() if os.environ["SLURM_PROCID"] == "0" else 0


def requeue() -> int:
    """Ask for this job to be started again: its script by the file ``$CIR_REQUEUE``, else Slurm; 0, or 1 if that cannot be."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        if "CIR_REQUEUE" in os.environ:
            Path(os.environ["CIR_REQUEUE"]).touch()
            return 0
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"cannot requeue job {job} ({error}); submit it again, it goes on where it was", flush=True)
        return 1
    print(f"job {job} is started again" if not done.returncode else f"cannot requeue job {job}: {done.stderr.strip()}", flush=True)
    return int(done.returncode != 0)
