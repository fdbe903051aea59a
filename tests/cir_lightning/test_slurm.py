"""Scripts for Slurm, and processes that are asked to stop. That the scripts work on a real Slurm is for ``tests/cluster``."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.runs import write_recipe

from cir_lightning import stops
from cir_lightning.cli import main as cir
from cir_lightning.slurm import main

ROOT = Path(__file__).parents[2]


def shown(capsys, *arguments):
    """The lines of the script that would be submitted."""
    assert main([*arguments, "--dry", "1"]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_job_on_two_machines(capsys):
    lines = shown(
        capsys, "fit", "--configs", "fashioniq.yaml backbones/qwen2.5-vl.yaml", "--nodes", "2", "--gpus", "8", "--partition", "a100"
    )
    assert lines[0] == "#!/bin/bash"
    assert {
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --signal=USR1@120",  # not B:, which tells the shell alone
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=runs/fashioniq/slurm-%j.log",
        "#SBATCH --partition=a100",
        "export HF_HUB_OFFLINE=1",
    } <= set(lines)
    assert lines[-1] == (
        "srun --export=ALL --kill-on-bad-exit=1 cir fit --config cluster/ddp.yaml --config fashioniq.yaml "
        '--config backbones/qwen2.5-vl.yaml --trainer.default_root_dir "runs/fashioniq" --ckpt_path last --trainer.num_nodes 2 '
        "--trainer.devices 8 --trainer.enable_progress_bar false"
    )


def test_machines_without_gpus(capsys):
    lines = shown(
        capsys, "fit", "--configs", "emoji.yaml", "--gpus", "0", "--tasks", "2", "--name", "mine", "--options", "--data.batch_size 8"
    )
    assert not [line for line in lines if "gpus" in line]
    assert "#SBATCH --ntasks-per-node=2" in lines
    assert '"runs/mine"' in lines[-1]
    assert lines[-1].endswith(" --data.batch_size 8")


def test_one_process_needs_no_strategy(capsys):
    assert "ddp" not in shown(capsys, "fit", "--configs", "emoji.yaml")[-1]


def test_scoring_a_run(capsys):
    lines = shown(capsys, "test", "--name", "mine", "--gpus", "4")
    assert " cir test --ckpt_path runs/mine --trainer.num_nodes 1 --trainer.devices 4 --trainer.strategy ddp " in lines[-1]
    assert not [line for line in lines if "signal" in line]  # it would kill what does not go on


def test_the_overlay_for_the_cluster(capsys):
    fsdp = shown(capsys, "fit", "--configs", "fashioniq.yaml cluster/fsdp.yaml", "--gpus", "8")[-1]
    assert " --config fashioniq.yaml --config cluster/fsdp.yaml --trainer.default" in fsdp
    assert " --config cluster/single.yaml --config emoji.yaml --trainer.default" in shown(capsys, "fit", "--configs", "emoji.yaml")[-1]


def test_what_a_cluster_may_want(capsys):
    lines = shown(capsys, "fit", "--configs", "emoji.yaml", "--sbatch", "--qos=long --comment='two words'", "--cpus", "6")
    assert {"#SBATCH --qos=long", "#SBATCH '--comment=two words'", "#SBATCH --cpus-per-task=6"} <= set(lines)
    assert "--cpus-per-task=6 " in lines[-1]  # which srun does not take from sbatch


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "pools.yaml"
    path.write_text("configs: [emoji.yaml]\nseeds: [0, 1]\narms: {a: [], b: [model: {lr: 1}]}\n")
    return str(path)


def test_a_study_is_an_array_of_its_runs(capsys, study, tmp_path):
    lines = shown(capsys, "study", "--configs", study, "--name", "emoji", "--nodes", "2", "--gpus", "2")
    assert "#SBATCH --array=0-3" in lines
    assert "#SBATCH --job-name=emoji" in lines
    assert "#SBATCH --output=runs/emoji/slurm-%A_%a.log" in lines
    said = run_script(tmp_path, lines, SLURM_ARRAY_JOB_ID="16", SLURM_ARRAY_TASK_ID="3")
    machines = "--trainer.num_nodes 2 --trainer.devices 2 --trainer.strategy ddp --trainer.enable_progress_bar false"
    assert f"cir study fit {study} --task 3 {machines} " in said[0]
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1 " in said[1]
    assert f"cir study test {study} --task 3 " in said[1]
    (tmp_path / "said").unlink()
    assert run_script(tmp_path, lines, asks=True, SLURM_ARRAY_JOB_ID="16", SLURM_ARRAY_TASK_ID="3")[1:] == ["scontrol requeue 16_3"]


def test_data_on_the_nodes_own_disk(capsys, tmp_path):
    source = tmp_path / "my data"
    (source / "images").mkdir(parents=True)
    (source / "images" / "a.png").write_text("a")
    lines = shown(capsys, "fit", "--configs", "fashioniq.yaml", "--stage", str(source), "--environment", str(source / "images" / "a.png"))
    assert f"source '{source / 'images' / 'a.png'}'" in lines
    assert '--data.root "$staged"' in lines[-1]
    staging = lines[lines.index(next(line for line in lines if line.startswith("staged="))) : -2]
    (source / "images").chmod(0o500)
    (tmp_path / "shared.png").write_text("b")
    (source / "b.png").symlink_to("../shared.png")
    (tmp_path / "cir-17.17").mkdir()
    (tmp_path / "cir-17.17" / "half.png").write_text("of a job that was killed")
    script = "\n".join(['srun() { shift 4; "$@"; }', f"TMPDIR={tmp_path}", "export SLURM_JOB_ID=17 SLURM_JOB_NUM_NODES=1", *staging])
    for _ in range(2):
        subprocess.run(["bash", "-euc", script], check=True)
        assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.glob("cir-*/**/*"))] == [
            "cir-17/b.png",
            "cir-17/images",
            "cir-17/images/a.png",
        ]
    assert not (tmp_path / "cir-17" / "b.png").is_symlink()
    assert os.access(tmp_path / "cir-17" / "images", os.W_OK)


def run_script(folder, lines, *, asks=False, code=0, **variables):
    """Run a job's script with programs of Slurm that only say what they were given; what they said.

    Args:
        folder: for these programs.
        lines: the script.
        asks: whether the tasks ask for the job to be started again.
        code: the exit code of the tasks.
        variables: of the environment.
    """
    said = folder / "said"
    touch = '! test "$CIR_REQUEUE" || touch "$CIR_REQUEUE"' if asks else ":"
    (folder / "srun").write_text(
        f'#!/bin/sh\necho srun "$@" MASTER_PORT=$MASTER_PORT >> {said}\ncase "$*" in *kill-on*) {touch}; exit {code};; esac\n'
    )
    (folder / "scontrol").write_text(f'#!/bin/sh\necho scontrol "$@" >> {said}\n')
    for program in ("srun", "scontrol"):
        (folder / program).chmod(0o755)
    (folder / "runs" / "emoji").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", **variables}
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env=environment, cwd=folder, check=False)
    assert done.returncode == (0 if asks else code)
    return said.read_text().splitlines()


def test_the_shell_starts_the_job_again_where_its_tasks_ask_for_it(capsys, tmp_path):
    lines = shown(capsys, "fit", "--configs", "emoji.yaml")
    assert run_script(tmp_path, lines, asks=True, code=1)[1:] == ["scontrol requeue 17"]
    (tmp_path / "said").unlink()
    (tmp_path / "runs" / "emoji" / "requeue-17").touch()  # of a start that was killed
    assert len(run_script(tmp_path, lines, code=2)) == 1


def test_the_copy_of_the_data_is_removed_when_the_job_is_over(capsys, tmp_path):
    lines = shown(capsys, "fit", "--configs", "emoji.yaml", "--stage", str(tmp_path))
    assert f"rm -rf {tmp_path}/cir-17 " in run_script(tmp_path, lines, code=2, TMPDIR=str(tmp_path))[-1]
    assert run_script(tmp_path, lines, asks=True, TMPDIR=str(tmp_path))[-1] == "scontrol requeue 17"


def test_variables_of_another_launcher_are_left_behind(capsys, tmp_path):
    (tmp_path / "own").write_text("export MASTER_PORT=${MASTER_PORT:-4242}")
    lines = shown(capsys, "fit", "--configs", "emoji.yaml", "--environment", str(tmp_path / "own"))
    assert run_script(tmp_path, lines, MASTER_PORT="29500")[-1].endswith("MASTER_PORT=4242")


def test_a_container_sees_the_folder_the_home_and_the_data(capsys, tmp_path):
    given = ["--container", "my image.sqsh", "--mounts", "/data,/scratch/me:/mine", "--stage", str(tmp_path)]
    lines = shown(capsys, "fit", "--configs", "emoji.yaml", *given)
    task = run_script(tmp_path, lines, TMPDIR=str(tmp_path))[-2]
    assert "--container-image=my image.sqsh --container-mount-home" in task
    assert f"--container-workdir={tmp_path} " in task
    assert f"--container-mounts={tmp_path}:{tmp_path},{tmp_path}/cir-17:{tmp_path}/cir-17,/data:/data,/scratch/me:/mine cir fit " in task


def test_a_job_reads_the_configs_that_it_was_submitted_with(tmp_path, monkeypatch):
    for program in ("squeue", "sbatch"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    Path("a.yaml").write_text("x: 1")
    for text in ("x: 1", "x: 2"):
        Path("a.yaml").write_text(text)
        assert main(["fit", "--configs", "emoji.yaml a.yaml"]) == 0
        copy = f"runs/emoji/configs/1/{tmp_path.name}/a.yaml"
        assert f"--config emoji.yaml --config {copy} " in Path("runs/emoji/job.sh").read_text()
        assert Path(copy).read_text() == text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fit"], "CONFIG is missing: a recipe, and overlays behind it"),
        (["fit", "--configs", "nope.yaml"], "CONFIG=nope.yaml: no such file, and no recipe of that name; cir --help lists them"),
        (["fit", "--configs", "emoji.yaml", "--nodes", "0"], "NODES=0 is not possible; set it to 1 or more"),
        (["fit", "--configs", "emoji.yaml", "--nodes", "two"], "argument --nodes: invalid int value: 'two'"),
        (["fit", "--configs", "emoji.yaml", "--name", "a b"], "NAME='a b' is no name for Slurm; use letters, digits, dots, dashes and"),
        (["fit", "--configs", "emoji.yaml", "--partition", "x\n#SBATCH --uid=0"], "PARTITION='x\\n#SBATCH --uid=0' is no name for Slurm"),
        (
            ["fit", "--configs", "emoji.yaml", "--time", "soon"],
            "TIME='soon' is no time; write minutes, hours:minutes:seconds",
        ),
        (["fit", "--configs", "emoji.yaml", "--time", "2:59"], "TIME=2:59 is too short, as a training is told 120 seconds before its end"),
        (["fit", "--configs", "emoji.yaml", "--name", "bash"], "NAME=bash is what Lightning calls a job in which nothing is started by"),
        (["fit", "--configs", "emoji.yaml", "--name", "a" * 101], "is no name for Slurm"),
        (["fit", "--configs", "emoji.yaml", "--tasks", "2"], "TASKS=2 is for machines without GPUs; set GPUS=0, too"),
        (["study", "--configs", "a.yaml b.yaml"], "CONFIG='a.yaml b.yaml' is not one study; name a file, or one of "),
        (["study"], "CONFIG='' is not one study; name a file, or one of "),
        (["study", "--configs", "gone"], "study gone: no such file, and no study of that name; there are "),
        (["fit", "--configs", "emoji.yaml", "--stage", "/nowhere"], "STAGE=/nowhere: no such file or folder"),
        (["fit", "--configs", "emoji.yaml", "--options", "'"], "No closing quotation"),
        (["fit", "--configs", "emoji.yaml", "--sbatch", "--qos long"], "SBATCH='long' is no option of sbatch; write them like"),
        (["test"], "NAME is missing: of the run that is to be tested, which lies in runs/NAME"),
    ],
)
def test_bad_values(arguments, sentence, capsys):
    assert main([*arguments, "--dry", "1"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("time", ["1440", "2:00:00", "1-0", "0", "3"])
def test_times_as_slurm_writes_them(time, capsys):
    assert f"#SBATCH --time={time}" in shown(capsys, "fit", "--configs", "emoji.yaml", "--time", time)


def test_a_config_whose_path_has_a_blank(tmp_path, capsys):
    config = tmp_path / "my study" / "a.yaml"
    config.parent.mkdir()
    config.write_text("{}")
    assert f"--config '{config}'" in shown(capsys, "fit", "--configs", f"'{config}'")[-1]


def test_a_switch_that_is_0_is_off(tmp_path, monkeypatch, capsys):
    assert "export HF_HUB_OFFLINE=1" in shown(capsys, "fit", "--configs", "emoji.yaml", "--online", "0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["fit", "--configs", "emoji.yaml", "--dry", "0"]) == 2


def test_where_nothing_can_be_written(tmp_path, monkeypatch, capsys):
    for program in ("squeue", "sbatch"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    (tmp_path / "runs").write_text("a file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main(["fit", "--configs", "emoji.yaml"]) == 2
    assert "slurm: cannot write runs/emoji: Not a directory" in capsys.readouterr().err


def test_without_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["fit", "--configs", "emoji.yaml"]) == 2
    assert "there is no sbatch here; log in where jobs are submitted, or set DRY=1" in capsys.readouterr().err


def test_make_hands_everything_on():
    words = [
        "make",
        "-s",
        "slurm-fit",
        "CONFIG=emoji.yaml",
        "NODES=3",
        "GPUS=2",
        "TIME=10",
        "ARGS=--model.lr 1e-4",
        "DRY=1",
        f"PYTHON={sys.executable}",
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "#SBATCH --nodes=3" in done.stdout
    assert "#SBATCH --time=10" in done.stdout
    assert done.stdout.rstrip().endswith("--model.lr 1e-4")


def test_a_finished_job_that_is_started_again_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    fit = ["fit", "--config", str(write_recipe(tmp_path)), "--ckpt_path", "last"]
    assert cir(fit) == 0
    assert cir(fit) == 2
    assert "2 steps are done already, and trainer.max_steps is 2; set it higher" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert cir(fit) == 0
    assert "last.ckpt: all of 2 steps are done already" in capsys.readouterr().out


def test_signals_are_only_noted(monkeypatch):
    monkeypatch.setattr(stops, "asked", None)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        stops.listen(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stops.asked is signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_exit_codes(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(stops, "asked", None)
    assert stops.leave() == 130
    monkeypatch.setattr(stops, "asked", signal.SIGTERM)
    assert stops.leave() == 143
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > "$0.said"\nexit ${FAILS:-0}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(stops, "asked", signal.SIGUSR1)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert stops.in_slurm()
    assert stops.leave() == 0  # another process asks
    assert not (tmp_path / "scontrol.said").exists()
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert stops.leave() == 0
    assert (tmp_path / "scontrol.said").read_text() == "requeue 17\n"
    monkeypatch.setenv("CIR_REQUEUE", str(tmp_path / "again"))  # its script does it, as a container has no scontrol
    (tmp_path / "scontrol.said").unlink()
    assert stops.leave() == 0
    assert (tmp_path / "again").exists()
    assert not (tmp_path / "scontrol.said").exists()
    monkeypatch.delenv("CIR_REQUEUE")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("FAILS", "1")
    assert stops.leave() == 1
    assert (tmp_path / "scontrol.said").read_text() == "requeue 16_3\n"
    assert "cannot requeue job 16_3" in capfd.readouterr().out
