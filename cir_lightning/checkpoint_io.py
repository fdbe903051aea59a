"""Checkpoint files: whole or not at all, never the reason why a run ends, and one before the last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from cir_lightning.checkpoint import LAST, PREVIOUS, read_checkpoint

if TYPE_CHECKING:
    from lightning.fabric.utilities.types import _PATH


class CheckpointFiles(TorchCheckpointIO):
    """Writes to a temporary name, to the disk itself, and then renames; keeps the ``last.ckpt`` of before as ``previous.ckpt``.

    torch writes a checksum of every tensor, which :func:`cir_lightning.checkpoint.read_checkpoint` checks. A file that cannot be written,
    as when the disk is full, is a warning: the run goes on, and the file of before stays.
    """

    def load_checkpoint(self, path: _PATH, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ARG002, FBT001 - Lightning's signature
        """Read a checkpoint, also one that Lightning has found by itself; see :func:`cir_lightning.checkpoint.read_checkpoint`."""
        return read_checkpoint(Path(path))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:  # noqa: ARG002 - Lightning's signature
        """Write a checkpoint."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
                left.unlink()
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.exists():
                path.replace(path.with_name(PREVIOUS))
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer has errors of its own for a file that takes no more bytes
            part.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:100]
            rank_zero_warn(f"cannot write {path} ({reason}): training goes on, and {path.name} stays as it was; make room on its disk")
