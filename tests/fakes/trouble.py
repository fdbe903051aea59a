"""Callbacks for recipes of runs that are slow, fail or hang."""

from __future__ import annotations

import gc
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from data_modules.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class Slow(Callback):
    """Makes every step last longer, so that a run can be disturbed in it.

    Args:
        seconds: added to each step.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Wait."""
        time.sleep(self.seconds)


class Memory(Callback):
    """Writes down how much memory the process has after every epoch.

    Args:
        file: a line for each epoch, bytes.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a line."""
        gc.collect()
        with self.file.open("a") as lines:
            print(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(), file=lines)


class Fails(Callback):
    """One process fails in the middle of a run.

    Args:
        rank: its number.
        step: optimizer steps before.
        how: ``says`` why, or ``hangs`` for ten minutes without a word.
    """

    def __init__(self, rank: int = 1, step: int = 2, how: str = "says") -> None:
        self.rank, self.step, self.how = rank, step, how

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Fail, if it is time to."""
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            if self.how == "hangs":
                time.sleep(600)
            raise UserError("cannot read picture x.png; replace it")
