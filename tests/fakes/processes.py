"""Several real processes of one test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from torch import multiprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

PRELOAD = ["torch", "torchmetrics"]  # imported once for all processes: they take seconds


def start(work: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run ``work(rank, *arguments)`` in every process, and wait.

    By a fork server, whose processes leave without Python's ending: a thread of gloo that lets go of a tensor meanwhile would abort them.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):
        multiprocessing.start_processes(work, arguments, nprocs=processes, start_method="forkserver")
