"""Jobs on a real Slurm, submitted by the Makefile: they are preempted, killed, lose nodes and time, and end as if nothing had happened."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from fakes.cluster import processes_with
from fakes.runs import TINY
from fakes.tiny import TinyCIR
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cir_lightning.checkpoint import read_checkpoint

STARTED = "part "  # the head of the table of parameters, once per start
STEPS = 100
DRAWS = "--model.encoder.init_args.connector.init_args.dropout=0.2 --model.loss.memory=40"  # what an inexact resume would show
OPTIONS = f"--data.batch_size=12 --trainer.max_steps={STEPS} --trainer.val_check_interval=20"


def recipe(folder, name, **trouble):
    """Write a recipe of the tiny model with a callback of ``fakes.trouble``; its file name."""
    config = json.loads(json.dumps(TINY))
    config["data"]["init_args"]["root"] = str(folder)
    config["trainer"]["callbacks"] += [{"class_path": f"fakes.trouble.{kind}", "init_args": given} for kind, given in trouble.items()]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"


def submit(cluster, name, options=f"{OPTIONS} {DRAWS}", seconds=0.15, **variables):
    """Submit a slow training on both nodes; its number."""
    config = recipe(cluster.folder, name, Slow={"seconds": seconds})
    return cluster.submit("slurm-fit", CONFIG=config, NAME=name, ARGS=options, **{"NODES": 2, "TASKS": 1, **variables})


def interrupt(cluster, number, start, how, draw):
    """Do this to a job some steps after its so-manieth start."""
    cluster.wait_for_line(number, STARTED, start)
    time.sleep(draw.uniform(0.5, 3.5))
    how()


def weights(folder, name="last.ckpt"):
    """What a run has trained, with its number of steps."""
    checkpoint = read_checkpoint(folder / "checkpoints" / name)
    return checkpoint["state_dict"] | {"step": torch.tensor(checkpoint["global_step"])}


def assert_same(folder, other):
    """Two runs ended with the same bits."""
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = weights(folder, name), weights(other, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name


@pytest.fixture(scope="module")
def short_of_time(cluster):
    """A job whose time is up before its work is done; it takes minutes, so it is the first to start."""
    return submit(cluster, "walltime", TIME=3, seconds=0.8)


@pytest.fixture(scope="module")
def whole(cluster, short_of_time):
    """The folder of an undisturbed run."""
    cluster.wait(submit(cluster, "whole"))
    return cluster.folder / "runs" / "whole"


def test_two_nodes_train_as_one_process_does(cluster):
    options = f"{OPTIONS} --trainer.max_steps=20 --trainer.log_every_n_steps=1"
    two = submit(cluster, "two", options, seconds=0)
    one = submit(cluster, "one", options.replace("size=12", "size=24"), seconds=0, NODES=1)
    for number in (two, one):
        cluster.wait(number)
    assert {"n1", "n2"} == set(cluster.do("scontrol", "show", "hostnames", cluster.job(two)["NodeList"]).split())
    ours, theirs = (losses(cluster.folder / "runs" / name) for name in ("two", "one"))
    assert len(ours) == 20
    assert ours[0] - ours[-1] > 0.1
    assert ours == pytest.approx(theirs, abs=1e-4)
    tests = [cluster.submit("slurm-test", NAME=name, NODES=nodes, TASKS=1) for name, nodes in (("two", 2), ("one", 1))]
    for number in tests:
        cluster.wait(number)
    ours, theirs = ((cluster.folder / "runs" / name / "test" / "results.csv").read_text() for name in ("two", "one"))
    assert ours == theirs.replace("runs/one", "runs/two")
    assert len(ours.splitlines()) > 10


def losses(folder):
    """The loss of every step."""
    log = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [event.value for event in log.Scalars("train/loss")]


def test_preemptions(cluster, whole, report):
    number, draw, survived = submit(cluster, "preempted"), random.Random(0), 0
    for turn in range(5):
        ask = ("scancel", "--signal=USR1") if turn % 2 == 0 else ("scontrol", "requeue")
        interrupt(cluster, number, turn + 1, lambda ask=ask: cluster.do(*ask, number), draw)
        cluster.wait_for_line(number, "stopped at step", turn + 1)
        cluster.wait_for_line(number, STARTED, turn + 2)
        survived += 1
    assert cluster.wait(number)["Restarts"] == "5"
    assert_same(cluster.folder / "runs" / "preempted", whole)
    report(f"preemptions survived: {survived} of 5 (3 by SIGUSR1, 2 by scontrol requeue; weights bit-equal to the undisturbed run's)")


def test_a_killed_task_ends_the_job_which_goes_on_when_it_is_submitted_again(cluster, whole):
    first = submit(cluster, "killed")
    interrupt(cluster, first, 1, lambda: kill_a_task(cluster, first), random.Random(1))
    assert cluster.wait(first, "FAILED", seconds=60)["ExitCode"] != "0:0"
    cluster.wait(submit(cluster, "killed"))
    assert_same(cluster.folder / "runs" / "killed", whole)


def kill_a_task(cluster, number):
    """SIGKILL one of a job's processes."""
    tasks = [pid for pid in processes_with(f"SLURM_JOB_ID={number}") if b"SLURM_PROCID=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    for pid in tasks:
        os.kill(pid, signal.SIGKILL)
    assert tasks


def test_a_lost_node(cluster, whole):
    number = submit(cluster, "lost")
    interrupt(cluster, number, 1, lambda: cluster.node_is_lost("n2"), random.Random(2))
    cluster.wait(number, "PENDING", seconds=90)
    cluster.node_is_back("n2")
    assert int(cluster.wait(number)["Restarts"]) >= 1
    assert_same(cluster.folder / "runs" / "lost", whole)


def test_a_cancelled_job_saves_and_goes_on_when_it_is_submitted_again(cluster, whole):
    first = submit(cluster, "cancelled")
    interrupt(cluster, first, 1, lambda: cluster.do("scancel", first), random.Random(3))
    cluster.wait(first, "CANCELLED")
    cluster.wait_for_line(first, "stopped at step", seconds=20)
    cluster.wait(submit(cluster, "cancelled"))
    assert_same(cluster.folder / "runs" / "cancelled", whole)


def test_a_failing_process_ends_the_job_and_says_why(cluster):
    config = recipe(cluster.folder, "failing", Fails={"rank": 1, "step": 2})
    number = cluster.submit("slurm-fit", CONFIG=config, NODES=2, TASKS=1, ARGS=OPTIONS)
    assert cluster.wait(number, "FAILED", seconds=60)["ExitCode"] == "2:0"
    assert "cir: cannot read picture x.png; replace it" in cluster.log(number)
    assert "Traceback" not in cluster.log(number)


def test_a_damaged_picture_ends_the_job_and_is_named(cluster):
    config = recipe(cluster.folder, "damaged")
    root = cluster.folder / "own pictures"
    TinyCIR(str(root)).read()
    picture = root / "pictures" / "pink-cross.png"
    picture.write_bytes(picture.read_bytes()[:100])
    number = cluster.submit("slurm-fit", CONFIG=config, NODES=2, TASKS=2, ARGS=f"{OPTIONS} --data.root '{root}'")
    cluster.wait(number, "FAILED", seconds=60)
    assert f"cir: cannot read picture {picture} (" in cluster.log(number)
    assert "Traceback" not in cluster.log(number)


def test_a_hanging_process_ends_the_job_when_the_others_have_waited_long_enough(cluster):
    config = recipe(cluster.folder, "hanging", Fails={"rank": 1, "step": 2, "how": "hangs"})
    waits = "--trainer.strategy.init_args.timeout=0:00:10"
    number = cluster.submit("slurm-fit", CONFIG=config, NODES=2, TASKS=1, ARGS=f"{OPTIONS} {waits}")
    cluster.wait(number, "FAILED", seconds=90)
    assert "cir: process 0 waited in callbacks.py, line " in cluster.log(number)
    assert "for another process, which has ended or hangs (Timed out waiting 10000ms" in " ".join(cluster.log(number).split())
    assert "Traceback" not in cluster.log(number)


def test_a_study_is_an_array_of_runs(cluster, whole):
    options = {
        "trainer": {"max_steps": STEPS, "val_check_interval": 20},
        "model": {"loss": {"memory": 40}},
        "data": {"init_args": {"batch_size": 12}},
    }
    options["model"]["encoder"] = {"init_args": {"connector": {"init_args": {"dropout": 0.2}}}}
    base = [recipe(cluster.folder, "both", Slow={"seconds": 0}), options]
    arms = {"first": [], "second": [{"model": {"lr": 1e-3}}]}
    (cluster.folder / "quick.yaml").write_text(yaml.safe_dump({"configs": base, "seeds": [0], "arms": arms}))
    number = cluster.submit("slurm-study", CONFIG="quick.yaml", NODES=2, TASKS=1)
    assert "quick" in cluster.make("slurm-status")
    refused = cluster.make("slurm-study", code=2, CONFIG="quick.yaml")
    assert f"slurm: job {number}_" in refused
    assert "has the name and the folder runs/quick; wait for it, scancel it, or set another NAME" in refused
    for task in (0, 1):
        cluster.wait(f"{number}_{task}")
    runs = cluster.folder / "runs" / "studies" / "quick"
    for arm in arms:
        assert json.loads((runs / arm / "seed-0" / "study.json").read_text())["done"]
        assert (runs / arm / "seed-0" / "test" / "results.json").is_file()
    assert_same(runs / "first" / "seed-0", whole)


def test_an_environment_and_data_on_the_nodes_own_disk(cluster):
    kept = "".join(f"export {key}='{os.environ[key]}'\n" for key in ("CIR_CACHE", "PYTHONPATH") if key in os.environ)
    greets = 'export GREETING="hello$UNSET_VARIABLE"\nfalse\necho $GREETING from the environment\n'
    (cluster.folder / "activate").write_text(kept + greets)
    (cluster.folder / "some data").mkdir()
    (cluster.folder / "some data" / "own.txt").write_text("mine")
    options = f"{OPTIONS} --trainer.max_steps=4 --trainer.val_check_interval=2"
    about = {
        "ENVIRONMENT": "activate",
        "STAGE": "some data",
        "CPUS": 2,
        "SBATCH": "--comment='my own' --mem=1000 --export=NONE",
        "NODES": 1,
        "TASKS": 2,
    }
    number = submit(cluster, "staged", options, **about)
    assert cluster.wait(number)["CPUs/Task"] == "2"
    log = cluster.log(number)
    assert log.count("hello from the environment") == 1
    assert "can't honor" not in log
    root = Path(yaml.safe_load((cluster.folder / "runs" / "staged" / "config.yaml").read_text())["data"]["init_args"]["root"])
    assert root.name == f"cir-{number}"
    assert not root.exists()  # it is removed with the job


def test_the_time_is_up(cluster, short_of_time):
    job = cluster.wait(short_of_time, seconds=600)
    assert int(job["Restarts"]) >= 1
    cluster.wait(submit(cluster, "in_time", seconds=0))
    assert_same(cluster.folder / "runs" / "walltime", cluster.folder / "runs" / "in_time")
