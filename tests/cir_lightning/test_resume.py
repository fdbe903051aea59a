"""Runs that are stopped at any moment end as if nothing had happened."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from fakes.build import tiny_encoder, tiny_module, tiny_trainer
from fakes.kills import run_killed
from fakes.tiny import TinyCIR
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from cir_lightning import stops
from cir_lightning.callbacks import LastCheckpoint, Stops
from cir_lightning.checkpoint import CONFIG_KEY, read_checkpoint, usable_checkpoint
from cir_lightning.checkpoint_io import CheckpointFiles
from cir_lightning.connector import Resampler
from cir_lightning.distributed import draw_seed
from cir_lightning.loss import InfoNCE
from data_modules.errors import UserError

KILLS = 3  # of each kind; make test-cluster does 20


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_killed_again_and_again_a_run_ends_bit_equal(tmp_path, how):
    """With dropout, negatives of earlier batches, the alignment, in the middle of epochs, and while checkpoints are written."""
    run_killed(tmp_path, KILLS, how)


def test_memory_and_dropout_go_on(tmp_path):
    class Weights(Callback):
        def on_train_end(self, trainer, pl_module):
            self.end = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}

    def fit(seed, checkpoint=None):
        module, weights = tiny_module(seed, encoder=tiny_encoder(connector=Resampler(4, 32, depth=1, heads=4, dropout=0.3))), Weights()
        module.loss = InfoNCE(temperature=0.1, memory=50)
        keep = ModelCheckpoint(tmp_path / f"run{seed}", filename="{step}", save_top_k=-1, every_n_train_steps=3)
        trainer = tiny_trainer(tmp_path, max_steps=8, callbacks=[keep, weights], enable_checkpointing=True)
        trainer.fit(module, datamodule=TinyCIR(str(tmp_path)), ckpt_path=checkpoint)
        return weights.end

    whole, resumed = fit(0), fit(1, tmp_path / "run0" / "step=3.ckpt")
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    assert torch.load(tmp_path / "run0" / "step=3.ckpt", weights_only=True)["memory"]["past"].shape == (50, 32)


STOPS = [
    ("train_batch_end 4", "validation_batch_end 6"),
    ("validation_batch_end 6", "validation_end 6"),
    ("train_batch_end 6", "validation_end 6"),
    ("validation_end 3", "validation_end 9"),  # 5 batches make an epoch: before its last batch
    ("train_batch_end 5", "train_batch_end 10"),  # between epochs
    ("train_batch_end 4", "train_batch_end 9"),
]


@pytest.mark.parametrize("places", STOPS)
def test_a_stopped_run_takes_the_same_steps(tmp_path, monkeypatch, places):
    class Watch(Callback):
        def __init__(self, place):
            hook, self.step = place.split()
            setattr(self, f"on_{hook}", self.stop)
            self.seen = []

        def stop(self, trainer, *_):
            if trainer.global_step == int(self.step):
                monkeypatch.setattr(stops, "asked", signal.SIGTERM)

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.seen.append((trainer.global_step, pl_module.last_batch.reference.tolist()))

        def on_validation_epoch_end(self, trainer, pl_module):
            self.seen.append(("validation", trainer.global_step))

    def fit(place, folder):
        monkeypatch.setattr(stops, "asked", None)
        watch = Watch(place)
        keeps = {"callbacks": [Stops(), LastCheckpoint(folder), watch], "enable_checkpointing": True}
        trainer = tiny_trainer(tmp_path, max_steps=12, val_check_interval=3, check_val_every_n_epoch=None, **keeps)
        last = folder / "last.ckpt"
        with contextlib.suppress(SystemExit):
            trainer.fit(tiny_module(0), datamodule=TinyCIR(str(tmp_path)), ckpt_path=last if last.exists() else None)
        return watch.seen

    whole = fit("end 0", tmp_path / "whole")
    parts = [fit(place, tmp_path / "cut") for place in (*places, "end 0")]
    assert all(parts)
    assert [seen for part in parts for seen in part] == whole
    assert [step for what, step in whole if what == "validation"] == [3, 6, 9, 12]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_of_a_jobs_processes_leaves_the_loaders_workers_at_work(tmp_path, monkeypatch, how):
    """Slurm signals every process of a task."""

    class Ask(Callback):
        def on_train_batch_end(self, *_):
            self.workers = multiprocessing.active_children()
            for process in (*(worker.pid for worker in self.workers), os.getpid()):
                os.kill(process, how)
            time.sleep(0.5)
            self.alive = [worker.is_alive() for worker in self.workers]

    monkeypatch.setattr(stops, "asked", None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    stops.listen(*before)
    data, ask = TinyCIR(str(tmp_path)), Ask()
    data.num_workers = 2
    keeps = {"callbacks": [Stops(), LastCheckpoint(tmp_path / "run"), ask], "enable_checkpointing": True}
    try:
        with pytest.raises(SystemExit):
            tiny_trainer(tmp_path, max_steps=4, **keeps).fit(tiny_module(0), datamodule=data)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ask.alive == [True, True]
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 1


def test_a_job_that_is_always_out_of_time_before_a_step_is_not_started_again_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(stops, "asked", None)
    last = tmp_path / "run" / "last.ckpt"

    class OutOfTime(Callback):
        def on_train_start(self, *_):
            stops.asked = signal.SIGUSR1

    def fit(*more):
        keeps = {"callbacks": [*more, Stops(), LastCheckpoint(last.parent)], "enable_checkpointing": True}
        start = {"ckpt_path": last if last.exists() else None}
        tiny_trainer(tmp_path, max_steps=4, **keeps).fit(tiny_module(0), datamodule=TinyCIR(str(tmp_path)), **start)

    for _ in range(Stops.IDLE - 1):
        with pytest.raises(SystemExit):
            fit(OutOfTime())
    with pytest.raises(UserError, match="3 times in a row the job's time was up before a single step; submit it again with a longer TIME"):
        fit(OutOfTime())
    monkeypatch.setattr(stops, "asked", None)
    fit()
    assert torch.load(last, weights_only=True)["callbacks"]["Stops"] == {"idle": 0}


def test_seeds_differ_where_anything_does():
    places = [(seed, epoch, batch, rank) for seed in (0, 1) for epoch in (0, 1) for batch in (0, 1) for rank in (0, 1)]
    seeds = {draw_seed(*place) for place in places}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert draw_seed(0, 1, 2, 3) == draw_seed(0, 1, 2, 3)


def content(step):
    """What a run would keep."""
    return {
        "state_dict": {"a": torch.full((1000,), float(step))},
        CONFIG_KEY: "",
        "pytorch-lightning_version": "",
        "tower": "",
        "global_step": step,
    }


def flip(path, record="data/0"):
    """Change one bit of a tensor."""
    with zipfile.ZipFile(path) as file:
        (info,) = [info for info in file.infolist() if info.filename.endswith(record)]
        raw = bytearray(path.read_bytes())
    at = raw.index(torch.full((1000,), 2.0).numpy().tobytes()[:64], info.header_offset)
    raw[at + 2] ^= 1
    path.write_bytes(raw)


def test_the_one_before_is_kept_and_taken_when_the_last_is_damaged(tmp_path, capsys):
    last, files = tmp_path / "last.ckpt", CheckpointFiles()
    (tmp_path / ".last.ckpt.77").write_bytes(b"of a killed process")
    for step in (1, 2):
        files.save_checkpoint(content(step), last)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["last.ckpt", "previous.ckpt"]
    assert usable_checkpoint(last) == last
    flip(last)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(last)
    assert usable_checkpoint(last) == tmp_path / "previous.ckpt"
    assert f"{last}: not a readable checkpoint" in (out := capsys.readouterr().out)
    assert "going on with" in out
    assert read_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 1
    last.unlink()
    assert usable_checkpoint(last) == tmp_path / "previous.ckpt"
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"previous\.ckpt: not a readable checkpoint"):
        usable_checkpoint(last)


FULL = """
import resource, sys, torch
from pathlib import Path
from cir_lightning.checkpoint_io import CheckpointFiles
path = Path(sys.argv[1])
CheckpointFiles().save_checkpoint({"step": 1, "a": torch.zeros(1000)}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
CheckpointFiles().save_checkpoint({"step": 2, "a": torch.zeros(100_000)}, path)
print("goes on", torch.load(path, weights_only=True)["step"], sorted(p.name for p in path.parent.iterdir()))
"""


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, name):
    folder = tmp_path / "checkpoints"
    run = subprocess.run([sys.executable, "-c", FULL, str(folder / name)], capture_output=True, text=True, check=False)
    assert run.stdout == f"goes on 1 ['{name}']\n", run.stderr
    assert f"cannot write {folder / name} (" in run.stderr
    assert f"): training goes on, and {name} stays as it was; make room on its disk" in run.stderr


def test_a_run_that_has_no_checkpoint_yet_starts_from_its_beginning(tmp_path, capsys):
    from fakes.runs import write_recipe

    from cir_lightning.cli import main

    recipe = write_recipe(tmp_path)
    assert main(["fit", "--config", str(recipe), "--ckpt_path", "last"]) == 0
    out = capsys.readouterr().out
    assert f"--ckpt_path last: there is no checkpoint in {Path(tmp_path) / 'run' / 'checkpoints'} yet; the run starts from its" in out
    assert main(["test", "--config", str(recipe), "--trainer.default_root_dir", str(tmp_path / "none"), "--ckpt_path", "last"]) == 2
