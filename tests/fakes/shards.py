"""The same short run on two processes, by DDP and with a sharded base: ``python -m fakes.shards FOLDER``.

The processes are forked after one slow import. Every one writes what it found to ``<strategy>-<rank>.pt``.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch import multiprocessing
from torch.distributed.tensor import DTensor

from cir_lightning import sharding as sharding  # registers the strategy
from cir_lightning.callbacks import LastCheckpoint
from fakes.build import tiny_encoder, tiny_module, tiny_trainer
from fakes.tiny import TinyCIR

STEPS = 6


class Watch(Callback):
    """Keeps the loss of every step, and what this process holds of the LLM's layers."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # noqa: D102
        self.losses.append(float(outputs["loss"]))
        layers = [p for name, p in pl_module.named_parameters() if ".layers." in name and not p.requires_grad]
        self.held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in layers), sum(p.numel() for p in layers)


def work(rank: int, strategy: str, port: int, folder: Path) -> None:
    """One process: train, stop in the middle, go on in another trainer, validate."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()}
    torch.set_num_threads(1)
    watch, last = Watch(), None
    for steps in (STEPS // 2, STEPS):
        data = TinyCIR(str(folder), batch_size=12, eval_batch_size=11)  # four batches of pictures, an uneven number of queries
        module = tiny_module(steps, encoder=tiny_encoder(gradient_checkpointing=steps == STEPS))
        options = {"strategy": strategy, "callbacks": [watch, LastCheckpoint(folder / strategy)], "enable_checkpointing": True}
        trainer = tiny_trainer(folder / strategy, devices=2, max_steps=steps, gradient_clip_val=1.0, **options)
        trainer.fit(module, datamodule=data, ckpt_path=last)
        last = folder / strategy / "last.ckpt"
    (figures, _) = trainer.validate(module, datamodule=data, verbose=False)
    scores = {name: ranking.scores for name, (_, ranking) in module.rankings.items()}
    torch.save({"losses": watch.losses, "held": watch.held, "figures": figures, "scores": scores}, folder / f"{strategy}-{rank}.pt")


def main(folder: Path) -> None:
    """Both strategies, one after the other."""
    for strategy in ("sharded", "ddp"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        multiprocessing.start_processes(work, (strategy, port, folder), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
