"""Training on two processes that have a processor each, beside one process that has one: ``make bench``.

Both train on the same global batches: ``cir fit`` of the mini LVLM on EmojiCIR from the packaged weights, the processes started apart, as a
cluster does, and pinned. What is compared is the median time between the ends of two steps.
"""

import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback

STEPS, WARM, BATCH = 12, 4, 64


class Clock(Callback):
    """Writes down when steps end.

    Args:
        path: file of the first process.
    """

    def __init__(self, path: str) -> None:
        self.path, self.ends = Path(path), []

    def on_train_batch_end(self, trainer, *_):  # noqa: D102
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer, pl_module):  # noqa: D102
        if trainer.is_global_zero:
            self.path.write_text(" ".join(map(str, self.ends)))


def seconds_per_step(folder, world, processors):
    """Median over the steps after the first ones."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fit = ["fit", "--config", "emoji.yaml", "--config", "demo.yaml", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=1000"]
    fit += [f"--trainer.default_root_dir={folder}/run", f"--data.batch_size={BATCH // world}", "--trainer.enable_progress_bar=false"]
    fit += ["--trainer.callbacks+=test_two_processes_speed.Clock", f"--trainer.callbacks.path={folder}/ends"]
    fit += [f"--trainer.devices={world}", "--trainer.strategy=ddp", "--model.init_from=emoji"] if world > 1 else []
    started = []
    for rank in range(world):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
        path = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | (place if world > 1 else {})
        pinned = ["taskset", "-c", str(processors[rank]), sys.executable, "-m", "cir_lightning.cli", *fit]
        started.append(subprocess.Popen(pinned, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in started:
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out
    ends = [float(end) for end in (folder / "ends").read_text().split()]
    return statistics.median(b - a for a, b in zip(ends[WARM:], ends[WARM + 1 :], strict=False))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be pinned here")
def test_two_processes(tmp_path, capsys):
    processors = sorted(os.sched_getaffinity(0))
    one, two = (seconds_per_step(tmp_path / str(world), world, processors) for world in (1, 2))
    with capsys.disabled():
        print(f"\na step of {BATCH} triplets: one process {one:.3f} s, two processes {two:.3f} s: {one / two:.2f} times")
