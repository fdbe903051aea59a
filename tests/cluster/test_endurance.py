"""Runs that are killed twenty times, and runs that are long."""

import json

import yaml
from fakes.kills import run_killed
from fakes.runs import TINY

from cir_lightning.cli import main

KILLS = 20
EPOCHS, WARM = 50, 10
MINI = {"class_path": "cir_lightning.backbones.mini.MiniLVLM", "init_args": {"layers": 1, "image_size": 96, "grid": 3, "lora": {"rank": 4}}}
GROWTH = 16e6  # bytes, which is what allocators keep back; a leak of one batch's embeddings and activations would be ten times as much


def test_kills(tmp_path, monkeypatch, report):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    halves = run_killed(tmp_path, KILLS, "SIGKILL")
    report(
        f"kills survived: {KILLS} of {KILLS} (SIGKILL, {halves} while a checkpoint was written; weights bit-equal to the undisturbed run's)"
    )


def test_memory_is_flat(tmp_path, report):
    config = json.loads(json.dumps(TINY))
    encoder, trainer = config["model"]["encoder"]["init_args"], config["trainer"]
    encoder["backbone"] = MINI
    measure = {"class_path": "fakes.trouble.Memory", "init_args": {"file": str(tmp_path / "memory")}}
    trainer |= {"default_root_dir": str(tmp_path / "run"), "max_epochs": EPOCHS, "max_steps": -1, "val_check_interval": 5}
    trainer["callbacks"].append(measure)
    config["data"]["init_args"]["root"] = str(tmp_path)
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "mini.yaml"), "--trainer.enable_progress_bar", "false"]) == 0
    taken = [int(line) for line in (tmp_path / "memory").read_text().split()]
    assert len(taken) == EPOCHS
    report(f"memory of {EPOCHS} epochs of mini: {taken[WARM] / 1e6:.0f} MB after {WARM} epochs, {taken[-1] / 1e6:.0f} MB at the end")
    assert max(taken[WARM:]) - taken[WARM] < GROWTH
