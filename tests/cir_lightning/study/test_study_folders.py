"""The folders of a study's runs: states, records of other configs, locks."""

import json
import subprocess
import sys

import pytest

from cir_lightning.study.folders import DONE, FAILED, LOG, NOT_BEGUN, RECORD, RUNNING, STOPPED, runs_of, same_elsewhere
from cir_lightning.study.plan import Study
from data_modules.errors import UserError


def study(name="quick", lr=0.1):
    return Study(name, "", ({"model": {"lr": lr}},), (0, 1), "one", (), {"one": (), "two": ({"model": {"width": 7}},)})


@pytest.fixture
def run(tmp_path):
    return runs_of(study(), tmp_path)[1]


def test_every_run_has_a_folder(tmp_path):
    folders = [run.folder.relative_to(tmp_path).as_posix() for run in runs_of(study(), tmp_path)]
    assert folders == ["quick/one/seed-0", "quick/two/seed-0", "quick/one/seed-1", "quick/two/seed-1"]


def test_states(run):
    assert run.state() == NOT_BEGUN
    run.note(error="")
    assert run.state() == STOPPED
    with run.lock() as held:
        assert held is not None
        assert run.state() == RUNNING
        with run.lock() as other:
            assert other is None
    run.note(error="cir: no")
    assert run.state() == FAILED
    run.note(done=True)
    assert run.state() == DONE
    assert run.record()["error"] == "cir: no"


def test_a_child_that_inherits_the_lock_holds_it_on(run):
    with run.lock() as held:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[held])
    run.note(error="")
    assert run.state() == RUNNING
    child.communicate(b"\n")
    assert run.state() == STOPPED


def test_a_run_of_another_config_is_refused(run, tmp_path):
    run.note(error="")
    other = runs_of(study(lr=0.2), tmp_path)[1]
    with pytest.raises(UserError, match=r"two/seed-0 holds a run of another config: model.lr is 0.1 there and 0.2 here; move or remove"):
        other.state()


def test_a_run_of_no_study_is_refused(run):
    (run.folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run that belongs to no study"):
        run.state()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mark": 1}'])
def test_a_damaged_record(run, text):
    run.note()
    (run.folder / RECORD).write_text(text)
    with pytest.raises(UserError, match=r"study.json: is damaged .* remove the folder"):
        run.state()


def test_progress_is_what_the_bar_said_last(run):
    run.note()
    assert run.progress() is None
    bars = [
        "Align:  10%|#  | 40/400 [00:01<00:09]",
        "Training:   0%|   | 0/240 [00:00<?]",
        "Training:  50%|##  | 120/240 [01:00<01:00, 2it/s]",
    ]
    (run.folder / LOG).write_text("\r".join(bars) + "\ncir: out of paper\n" + "\r" + bars[1][:9])
    assert run.progress() == (120, 240)
    (run.folder / LOG).write_text("x\ncir: out of paper\n\n")
    assert run.complaint() == "cir: out of paper"


def test_the_same_run_of_another_study(run, tmp_path):
    other = runs_of(study("other"), tmp_path)[1]
    assert same_elsewhere(run, tmp_path) is None
    other.note(done=False)
    assert same_elsewhere(run, tmp_path) is None
    other.note(done=True)
    assert same_elsewhere(run, tmp_path) == other.folder.resolve()
    (other.folder / RECORD).write_text(json.dumps({"done": True, "mark": "x"}))
    assert same_elsewhere(run, tmp_path) is None
