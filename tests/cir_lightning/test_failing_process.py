"""A process that fails takes the others with it, at once, and its message is the one that counts."""

import socket
import subprocess
import sys

import pytest
from fakes.runs import write_recipe

from cir_lightning.distributed import lost_others

PROCESSES = """
import os, sys
from lightning.pytorch import Callback
from cir_lightning import lightning_cli
from cir_lightning.cli import main
from data_modules.errors import UserError

class Fails(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            raise UserError("cannot read picture x.png; replace it")

standard = lightning_cli.standard_callbacks
lightning_cli.standard_callbacks = lambda *arguments: [*standard(*arguments), Fails()]
port, folder, *argv = sys.argv[1:]
children = []
for rank in range(2):
    if not (child := os.fork()):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {key: str(value) for key, value in place.items()}
        with open(f"{folder}/{rank}.log", "w") as log:
            os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
        code = main(argv)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_both_end_and_say_why(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=6", "--data.batch_size=12"]
    command = [sys.executable, "-c", PROCESSES, str(port), str(tmp_path), "fit", "--config", str(recipe), *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    waiting, failed = ((tmp_path / f"{rank}.log").read_text() for rank in range(2))
    assert run.stdout == "[2, 2]\n", run.stderr + waiting + failed
    assert "cir: cannot read picture x.png; replace it" in failed
    assert "cir: process 0 waited in loss.py, line " in waiting
    assert "for another process, which has ended or hangs" in waiting
    assert "Traceback" not in waiting + failed
    assert "sync_dist" not in waiting


def test_other_errors_are_left_alone():
    assert lost_others(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    with pytest.raises(RuntimeError) as error:
        raise RuntimeError("Timed out waiting 1800000ms for recv operation to complete")
    assert "another process, which has ended or hangs (Timed out waiting 1800000ms" in lost_others(error.value)
