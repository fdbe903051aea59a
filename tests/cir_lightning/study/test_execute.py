"""Studies with real processes: done, stopped and gone on with, shared with other studies, failed."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from fakes.runs import TINY

from cir_lightning.cli import main
from cir_lightning.study.execute import machine_options
from cir_lightning.study.folders import PROGRESS
from data_modules.errors import UserError


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    data = {"class_path": TINY["data"]["class_path"], "init_args": {"root": str(tmp_path / "data")}}

    def write(name, arms, **trainer):
        base = TINY | {"data": data, "trainer": TINY["trainer"] | {"callbacks": []} | trainer}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"configs": [base], "seeds": [3], "arms": arms}, sort_keys=False))
        return str(path)

    return write


POOL, LAST = [], [{"model": {"encoder": {"init_args": {"pooling": "last"}}}}]


def test_a_study_is_run_once_and_shared(write, tmp_path, capsys):
    assert main(["study", "run", write("first", {"wm": POOL, "last": LAST}), "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("study first: 0 of 2 runs are done\n")
    assert all(re.search(rf"^\[{at}/2\] {arm} seed 3: done in \d", said, re.MULTILINE) for at, arm in ((1, "wm"), (2, "last")))
    folder = tmp_path / "runs/studies/first/last/seed-3"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["model"]["encoder"]["init_args"]["pooling"] == "last"
    record = json.loads((folder / "study.json").read_text())
    assert record["done"]
    assert record["seconds"].keys() == {"fit", "test"}
    assert record["costs"].keys() == {"trained parameters", *(f"{a} per {b}" for a in ("tokens", "GFLOP") for b in ("query", "picture"))}
    assert json.loads((folder / "test/results.json").read_text())["seed"] == 3
    assert PROGRESS.findall((folder / "log.txt").read_text())[-1] == ("2", "2")

    assert main(["study", "run", str(tmp_path / "first.yaml")]) == 0
    assert capsys.readouterr().out == "study first: 2 of 2 runs are done\n"
    assert main(["study", "run", write("second", {"l": LAST})]) == 0
    assert "the same run as" in capsys.readouterr().out
    assert (tmp_path / "runs/studies/second/l/seed-3").resolve() == folder
    assert main(["study", "status", str(tmp_path / "second.yaml")]) == 0
    assert capsys.readouterr().out == "l seed 3  done\nstudy second: 1 done; in runs/studies/second\n"


def test_a_stopped_study_goes_on(write, tmp_path, capsys):
    study = write("long", {"wm": POOL}, max_steps=40, val_check_interval=40)
    process = subprocess.Popen([sys.executable, "-m", "cir_lightning.cli", "study", "run", study], stdout=subprocess.PIPE, text=True)
    log = tmp_path / "runs/studies/long/wm/seed-3/log.txt"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and PROGRESS.search(log.read_text())):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped at step" in log.read_text()
    assert main(["study", "status", study]) == 0
    assert capsys.readouterr().out.startswith("wm seed 3  stopped")
    assert main(["study", "run", study]) == 0
    assert capsys.readouterr().out.startswith("study long: 0 of 1 runs are done\n[1/1] wm seed 3: done in ")
    assert json.loads((log.parent / "study.json").read_text())["done"]


def test_a_run_that_fails_does_not_stop_the_others(write, tmp_path, capsys):
    study = write("mixed", {"bad": [{"model": {"init_from": "gone.ckpt"}}], "wm": POOL})
    assert main(["study", "run", study]) == 1
    said = capsys.readouterr().out
    assert "[1/2] bad seed 3: failed: cir: " in said
    assert "gone.ckpt" in said
    assert "[2/2] wm seed 3: done in" in said
    assert main(["study", "status", study]) == 0
    assert capsys.readouterr().out.startswith("bad seed 3  failed: cir: ")


def test_overlays_that_say_what_is_so_by_default(write, capsys):
    study = write("same", {"wm": POOL, "default": [{"model": {"encoder": {"init_args": {"pooling": "weighted_mean"}}}}]})
    assert main(["study", "run", study]) == 2
    assert "the overlays of the arm 'default' change nothing against 'wm': they say what is so by default" in capsys.readouterr().err


def test_an_overlay_that_is_refused_names_the_arm(write, capsys):
    assert main(["study", "run", write("wrong", {"wm": [{"model": {"lrr": 1}}]})]) == 2
    assert "study wrong, arm wm: " in capsys.readouterr().err


def test_options_are_of_the_machine():
    assert machine_options(["--data.root", "x", "--trainer.devices=2"]) == ["--data.root", "x", "--trainer.devices=2"]
    with pytest.raises(UserError, match=r"--model.lr would make the runs other ones; write it into the study"):
        machine_options(["--model.lr", "1"])


def test_one_task_in_this_process(write, tmp_path, capsys):
    study = write("array", {"wm": POOL, "last": LAST})
    for command in ("fit", "test"):
        run = [sys.executable, "-m", "cir_lightning.cli", "study", command, study, "--task", "1"]
        assert subprocess.run(run, check=False, capture_output=True).returncode == 0
    assert main(["study", "status", study]) == 0
    assert capsys.readouterr().out.startswith("wm seed 3    not begun\nlast seed 3  done\n")
    assert main(["study", "fit", study, "--task", "2"]) == 2
    assert "--task 2: study array has tasks 0 to 1" in capsys.readouterr().err
