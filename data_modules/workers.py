"""Worker processes of data loaders: signals to all of a job do not end them, and nothing waits for them when their own process ends."""

from __future__ import annotations

import atexit
import multiprocessing.util  # its own ending, which waits for workers, must be registered before ours: the last one comes first
import signal


def outlive_signals(worker: int) -> None:  # noqa: ARG001 - torch's signature
    """Leave it to the training process when to stop: Slurm signals all processes of a task, and the last step needs its batch.

    To be called in a worker, as the ``worker_init_fn`` of a loader.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end() -> None:
    """End what Python would ask to end by the SIGTERM that it ignores, and then wait for."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
