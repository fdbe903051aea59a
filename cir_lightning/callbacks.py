"""The callbacks that every run has: checkpoints and log in the run folder, a parameter table, prompt usage."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from cir_lightning import stops
from cir_lightning.guards import Guards
from cir_lightning.predictions import Predictions
from cir_lightning.results import ResultPictures, ResultsTable
from data_modules.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from cir_lightning.guards import OnNonfinite


def standard_callbacks(
    command: str, root: Path, checkpoint: str | None, weights: str | None, monitor: str, on_nonfinite: OnNonfinite
) -> list[Callback]:
    """The callbacks of a command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        root: the run folder.
        checkpoint: path of the checkpoint, if one is loaded; its own run folder then takes the results.
        weights: what the model starts from; results without a checkpoint lie apart, so that they never replace those of a trained run.
        monitor: name of the figure that chooses the best checkpoint.
        on_nonfinite: what a batch does whose gradient is no number.
    """
    if command == "fit":
        watch = [ParameterTable(), PromptUsage(), Guards(on_nonfinite)]
        kept = [Stops(), best_checkpoint(root / "checkpoints", monitor), LastCheckpoint(root / "checkpoints")]
        return [*kept, *watch, ResultsTable(root, ""), ResultPictures(root)]
    folder = results_folder(root, checkpoint, weights)
    if command == "predict":
        return [Predictions(folder)]
    return [ResultsTable(folder, checkpoint or weights or ""), ResultPictures(folder)]


def results_folder(root: Path, checkpoint: str | None, weights: str | None) -> Path:
    """Where the results of a checkpoint go: into its own run folder; those of other weights, and of none, lie apart."""
    if checkpoint:
        parent = Path(checkpoint).parent
        return parent.parent if parent.name == "checkpoints" else parent
    return root / ("init_from" if weights else "untrained")


def best_checkpoint(folder: Path, monitor: str) -> ModelCheckpoint:
    """``best.ckpt``: what is trained, without optimizer state, at the highest figure of the recipe's headline metric."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=monitor,
        mode="max",
        save_weights_only=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt``, with which a run goes on: at every validation, at the end, and when the user stops the run by Ctrl-C."""

    def __init__(self, folder: Path) -> None:
        super().__init__(dirpath=folder, filename="last", enable_version_counter=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the steps after the last validation, too."""
        super().on_train_end(trainer, pl_module)
        if trainer.global_step > self._last_global_step_saved:
            trainer.save_checkpoint(f"{self.dirpath}/last.ckpt", weights_only=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Count a validation that is done again from its beginning, or once finished it would count as stopped in its middle."""
        if trainer.state.fn == "fit":
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Keep what there is."""
        if not isinstance(exception, KeyboardInterrupt) or trainer.state.fn != "fit":
            return
        if not trainer.optimizers:
            print("\nstopped before training: there is nothing to go on with")
            return
        if trainer.validating:  # else Lightning would go on in the middle of it, without the embeddings of what came before
            validation = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            validation.reset()
            validation.increment_ready()
            validation.increment_started()
        batches = trainer.fit_loop.epoch_loop.batch_progress
        if batches.current.ready > batches.current.completed:  # its batch is not done, and counted would be left out or validated early
            batches.total.ready, batches.current.ready = batches.total.completed, batches.current.completed
            batches.is_last_batch = False
        path = f"{self.dirpath}/last.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            print(f"\nstopped at step {trainer.global_step}; go on with the same command and --ckpt_path last ({path})")


class Stops(Callback):
    """Stops all processes before the same batch when one of them was asked to; :class:`LastCheckpoint` then saves.

    A job that has been out of time so often in a row before its first step ends, or it would be started again for ever.
    """

    IDLE = 3

    def __init__(self) -> None:
        self.idle = 0
        self.moved = False

    def state_dict(self) -> dict[str, int]:
        """How often in a row a start came to nothing."""
        return {"idle": self.idle}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """See :meth:`state_dict`."""
        self.idle = state_dict["idle"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """There is progress."""
        self.moved, self.idle = True, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """From now on there is something to save. In place of Lightning's handler, which waits for other processes within a signal."""
        stops.listen(signal.SIGTERM)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Stop between two steps."""
        self._stop(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop in a validation, which is then done again."""
        if trainer.state.fn == "fit":
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        strategy = trainer.strategy
        asked = int(strategy.reduce(torch.tensor(stops.asked or 0, device=strategy.root_device), reduce_op="max"))
        if asked:
            stops.asked = signal.Signals(asked)
            self.idle += stops.asked is signal.SIGUSR1 and not self.moved
            if self.idle == self.IDLE:
                raise UserError(
                    f"{self.idle} times in a row the job's time was up before a single step; submit it again with a longer TIME"
                )
            raise KeyboardInterrupt


class RunLog(Callback):
    """Opens TensorBoard's log once nothing refuses the run any more: a logger given to the trainer writes its file before any check.

    Args:
        root: run folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Give the trainer its logger."""
        trainer.logger = TensorBoardLogger(self.root, name="", version="tensorboard")


class RunProgress(TQDMProgressBar):
    """One training bar over all optimizer steps of the run, so that the time left is that of the run and not of an epoch."""

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        """Start where the run goes on."""
        super().on_train_start(trainer, *args)
        self.train_progress_bar.initial = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Set the bar's length."""
        total = trainer.estimated_stepping_batches
        self.train_progress_bar.total = int(total) if math.isfinite(total) else None
        self.train_progress_bar.set_description("Training")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Move the bar."""
        if self.is_enabled and (trainer.global_step % self.refresh_rate == 0 or trainer.global_step == self.train_progress_bar.total):
            self.train_progress_bar.n = trainer.global_step
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict[str, float]]:
        """Without the version number, which one folder per run makes pointless."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class ParameterTable(Callback):
    """Prints what is trained and what is frozen, per part."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if trainer.is_global_zero:
            print(parameter_table(pl_module))


def parameter_table(module: torch.nn.Module) -> str:
    """Parts of the module with trainable and frozen parameters, as aligned text."""
    counts: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        part = ".".join(name.removeprefix("encoder.").split(".")[: 2 if "backbone." in name else 1])
        part += " (LoRA)" if "lora_" in name else ""
        counts.setdefault(part, [0, 0])[0 if parameter.requires_grad else 1] += parameter.numel()
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [
        ("part", "trainable", "frozen"),
        *((part, f"{a:,}", f"{b:,}") for part, (a, b) in counts.items()),
        ("total", *(f"{n:,}" for n in total)),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"  {part:<{widths[0]}}  {a:>{widths[1]}}  {b:>{widths[2]}}" for part, a, b in rows)


class PromptUsage(Callback):
    """Logs how evenly the pool's prompts are chosen: entropy relative to its maximum, and the share of prompts never chosen.

    Args:
        every: training steps that one figure covers.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.counts: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Count, and log now and then."""
        chosen = pl_module.last_chosen
        if not isinstance(chosen, torch.Tensor):
            return
        size = pl_module.encoder.soft_prompt.size  # type: ignore[union-attr]
        counted = torch.bincount(chosen.flatten().cpu(), minlength=size)  # type: ignore[arg-type]
        self.counts = counted if self.counts is None else self.counts + counted
        if trainer.global_step % self.every == 0:
            share = self.counts / self.counts.sum()
            entropy = -(share * share.clamp_min(1e-12).log()).sum() / torch.log(torch.tensor(float(len(share))))
            pl_module.log_dict({"prompts/entropy": entropy, "prompts/unused": (self.counts == 0).float().mean()})
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_histogram("prompts/chosen", chosen.flatten(), trainer.global_step)
            self.counts = None
