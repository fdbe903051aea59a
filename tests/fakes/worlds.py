"""The same short run on 1 to 4 real processes: ``python -m fakes.worlds FOLDER``.

The processes are forked (after one slow import) and find each other as under torchrun. Every process writes ``<world>-<rank>.pt``.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch import multiprocessing

from cir_lightning.alignment import TitleAlignment
from cir_lightning.prompt_pool import PromptPool
from fakes.build import tiny_encoder, tiny_module, tiny_trainer
from fakes.tiny import TinyCIR

WORLDS = (4, 3, 2, 1)  # the last one in a fork too: a process that has run a backward pass must not be forked
GLOBAL_BATCH = 24


class Gradients(Callback):
    """Keeps the gradients of the first step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):  # noqa: D102
        if trainer.global_step == 0:
            self.first = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.requires_grad}


def work(rank: int, world: int, port: int, folder: Path) -> None:
    """One process."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()}
    torch.set_num_threads(1)
    data = TinyCIR(str(folder), batch_size=GLOBAL_BATCH // world, eval_batch_size=22)  # 40 pictures: two of four would get none
    module = tiny_module(encoder=tiny_encoder(soft_prompt=PromptPool(6, 2, chosen=2)))
    trainer = tiny_trainer(
        folder,
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_steps=3,
        limit_val_batches=1.0,
        callbacks=[TitleAlignment(5, 16), gradients := Gradients()],
    )
    out = {}
    for moment in ("before", "after"):
        out[moment] = {
            "metrics": trainer.validate(module, datamodule=data, verbose=False)[0],
            "scores": {name: ranking.scores for name, (_, ranking) in module.rankings.items()},
            "connector": [p.detach().clone() for p in module.encoder.connector.parameters()],
        }
        if moment == "before":
            trainer.fit(module, datamodule=data)
    out["gradients"] = gradients.first
    torch.save(out, folder / f"{world}-{rank}.pt")


def main(folder: Path) -> None:
    """All worlds, one after the other."""
    for world in WORLDS:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        multiprocessing.start_processes(work, (world, port, folder), nprocs=world, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
