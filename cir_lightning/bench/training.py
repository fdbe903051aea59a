"""A trainer like the recipe's that does the same step again and again."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer

from data_modules.stages import BACKWARD, OPTIMIZER, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from lightning.pytorch import LightningModule

KEPT = ("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark")


def make_trainer(settings: Any, callbacks: list[Callback], max_steps: int) -> Trainer:
    """A trainer in one process, without what does not belong to a step: validation, checkpoints, logs.

    Args:
        settings: the recipe's arguments of the trainer.
        callbacks: instead of the recipe's.
        max_steps: of the optimizer.
    """
    options: dict[str, Any] = {name: settings[name] for name in KEPT if settings.get(name) is not None}
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "use_distributed_sampler")
    options |= dict.fromkeys(off, False) | {"devices": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    with quiet():
        return Trainer(callbacks=callbacks, max_steps=max_steps, **options)


class Driver(Callback):
    """Marks the stages that are a trainer's own, and goes from round to round at the end of each batch.

    What the trainer does in between belongs to the step.

    Args:
        rounds: the rest of them.
    """

    def __init__(self, rounds: Iterator[int]) -> None:
        self.rounds, self.open = rounds, ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Begin."""
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.open.close())
        next(self.rounds)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:  # noqa: ARG002
        """The backward pass begins."""
        self.open.enter_context(stage(BACKWARD))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """It ends; gradients are clipped and the optimizer works."""
        self.open.close()
        self.open.enter_context(stage(OPTIMIZER))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """The next round."""
        self.open.close()  # where a gradient was not finite, the optimizer did nothing
        next(self.rounds, None)


class AtStart(Callback):
    """Does something when the model is built and on its device.

    Args:
        act: what.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Do it."""
        self.act()


class Again:
    """A loader that makes the same batch again and again.

    Args:
        make: the batch.
        times: how often.
    """

    def __init__(self, make: Callable[[], Any], times: int) -> None:
        self.make, self.times = make, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Any]:
        return (self.make() for _ in range(self.times))


@contextmanager
def quiet() -> Iterator[None]:
    """Without what a trainer says about itself."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(before)
