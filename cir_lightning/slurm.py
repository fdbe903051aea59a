"""Jobs for Slurm: ``make slurm-fit CONFIG=fashioniq.yaml NODES=2 GPUS=8``. Standard library only; nothing slow is imported.

One script for every job. It asks for as many tasks per node as there are devices, and may be started again. A training's tasks (not its
shell) are told before the time is up, and ``--ckpt_path last`` goes on where the job was, or starts the run.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

from cir_lightning.cli import recipe_folder
from data_modules.errors import UserError

NOTICE = 120  # seconds before the end of its time at which a job is told
LEAST = NOTICE + 60  # seconds of a training; Slurm may tell it a minute early
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
TAKEN = ("bash", "interactive")  # names of jobs that Lightning does not take for Slurm's
STALE = "unset MASTER_ADDR MASTER_PORT RANK LOCAL_RANK WORLD_SIZE TORCHELASTIC_RUN_ID  # of the shell that it was submitted from"
ONCE = "srun --export=ALL --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1"  # for each node
# Nobody else's folder will do; what links lead to is copied, too; nothing is left by half, nor without permission to remove it.
COPY = """test -O "$1" || {
  trap 'rm -rf "$1.$SLURM_JOB_ID"' EXIT
  rm -rf "$1.$SLURM_JOB_ID"; mkdir -p "$1.$SLURM_JOB_ID"
  cp -rL --preserve=timestamps --no-preserve=mode "$2/." "$1.$SLURM_JOB_ID" && mv -T "$1.$SLURM_JOB_ID" "$1"
} || test -O "$1" || {
  echo "cannot copy $2 to $1 on $(hostname); make room there, or leave STAGE out" >&2; exit 1
}"""
TIME = re.compile(r"(\d+-)?\d+(:\d{2}){0,2}")


class Job(NamedTuple):
    """What is asked of Slurm.

    Attributes:
        command: ``fit`` or ``test``.
        configs: recipe and overlays; with ``array``, a study.
        name: of the job and of its folder in ``runs``.
        nodes: machines.
        gpus: of each machine; 0 for none.
        tasks: processes on each machine without GPUs.
        cpus: processors of each process; 0 for the cluster's default.
        time: as Slurm writes it.
        partition: where to run; empty for the default.
        account: who pays; empty for the default.
        container: image for ``srun --container-image`` (pyxis), which sees the working folder and the home; empty for none.
        mounts: further folders that the container sees, with commas between, such as ``/data,/scratch/me:/mine``.
        environment: a file that is sourced, such as a virtual environment's ``bin/activate``; empty for none.
        stage: a folder that is copied to each node's own disk, where ``data.root`` then is; empty for none.
        sbatch: further words for ``sbatch``, such as ``--qos=long --mem=0``.
        online: whether nodes may reach the Hugging Face hub.
        array: how many runs the study has, each a task of an array; 0 for a job that is no study.
        cir: the program.
        options: further options of ``cir``.
    """

    command: str
    configs: list[str]
    name: str
    nodes: int = 1
    gpus: int = 1
    tasks: int = 1
    cpus: int = 0
    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    container: str = ""
    mounts: str = ""
    environment: str = ""
    stage: str = ""
    sbatch: str = ""
    online: bool = False
    array: int = 0
    cir: str = "cir"
    options: tuple[str, ...] = ()

    def check(self) -> Job:
        """Itself.

        Raises:
            UserError: a value that no job can have.
        """
        self._check_size()
        for key in ("name", "partition", "account"):
            if (value := getattr(self, key)) and not NAME.fullmatch(value):
                raise UserError(f"{key.upper()}={value!r} is no name for Slurm; use letters, digits, dots, dashes and underscores")
        if self.name in TAKEN:
            raise UserError(f"NAME={self.name} is what Lightning calls a job in which nothing is started by srun; set another NAME")
        for key in ("environment", "stage"):
            if (value := getattr(self, key)) and not Path(value).exists():
                raise UserError(f"{key.upper()}={value}: no such file or folder")
        if others := [word for word in shlex.split(self.sbatch) if not word.startswith("-")]:
            raise UserError(f"SBATCH={others[0]!r} is no option of sbatch; write them like SBATCH='--qos=long --mem=0'")
        self._check_configs()
        return self

    def _check_size(self) -> None:
        for key, least in (("nodes", 1), ("gpus", 0), ("tasks", 1), ("cpus", 0)):
            if (value := getattr(self, key)) < least:
                raise UserError(f"{key.upper()}={value} is not possible; set it to {least} or more")
        if not TIME.fullmatch(self.time):
            raise UserError(f"TIME={self.time!r} is no time; write minutes, hours:minutes:seconds, or days-hours, such as 1-12")
        if self.command == "fit" and 0 < seconds(self.time) < LEAST:
            raise UserError(f"TIME={self.time} is too short, as a training is told {NOTICE} seconds before its end; set it to 5 or more")
        if self.gpus and self.tasks != 1:
            raise UserError(f"TASKS={self.tasks} is for machines without GPUs; set GPUS=0, too, or leave it out")

    def _check_configs(self) -> None:
        if self.array:
            return
        for config in self.configs:
            if not any(path.is_file() for path in (Path(config), recipe_folder() / config)):
                raise UserError(f"CONFIG={config}: no such file, and no recipe of that name; cir --help lists them")
        if not self.configs and self.command == "fit":
            raise UserError("CONFIG is missing: a recipe, and overlays behind it: CONFIG='fashioniq.yaml backbones/qwen2.5-vl.yaml'")
        if self.command == "test" and not self.name:
            raise UserError("NAME is missing: of the run that is to be tested, which lies in runs/NAME")


def seconds(time: str) -> int:
    """How long a time is that is written as Slurm writes it; 0 for no limit.

    >>> seconds("90"), seconds("1:30"), seconds("1:00:00"), seconds("1-12")
    (5400, 90, 3600, 129600)
    """
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, rest = ([*parts, 0, 0] if dash or len(parts) == 3 else [0, *parts, 0])[:3]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + rest


def render(job: Job) -> str:
    """The script for ``sbatch``."""
    devices = job.gpus or job.tasks
    asked = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": devices,
        "gpus-per-node": job.gpus,
        "cpus-per-task": job.cpus,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "array": f"0-{job.array - 1}" if job.array else "",
        "output": f"runs/{job.name}/slurm-%{'A_%a' if job.array else 'j'}.log",
        "open-mode": "append",
        "signal": f"USR1@{NOTICE}" if job.command == "fit" else "",  # without B: the tasks are told, and not the shell
    }
    lines = ["#!/bin/bash", *(f"#SBATCH --{key}={value}" for key, value in asked.items() if value), "#SBATCH --requeue"]
    lines += [*(f"#SBATCH {shlex.quote(word)}" for word in shlex.split(job.sbatch)), ""]
    lines += [STALE]
    lines += [f"source {shlex.quote(str(Path(job.environment).resolve()))}"] if job.environment else []  # most fail under set -u
    lines += [
        "set -eu",
        "export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1",
        *([] if job.online else ["export HF_HUB_OFFLINE=1"]),
    ]
    lines += [*_end(job), *_stage(job), "", *_steps(job, devices), ""]
    return "\n".join(lines)


def _steps(job: Job, devices: int) -> list[str]:
    """What is started on the nodes; of a study, the test after the training, unless that wants to go on in another job."""
    cpus = f"--cpus-per-task={job.cpus} " if job.cpus else ""  # srun no longer takes it from sbatch (Slurm 22.05)
    start = f"srun --export=ALL --kill-on-bad-exit=1 {cpus}{_container(job)}"
    if not job.array:
        return [start + " ".join(_words(job, devices))]
    task = f'{shlex.quote(job.configs[0])} --task "$SLURM_ARRAY_TASK_ID"'
    strategy = ["--trainer.strategy ddp"] if devices * job.nodes > 1 else []
    machines = [f"--trainer.num_nodes {job.nodes}", f"--trainer.devices {devices}", *strategy, "--trainer.enable_progress_bar false"]
    others = ['--data.root "$staged"'] if job.stage else []
    others += map(shlex.quote, job.options)
    alone = "--nodes=1 --ntasks=1 --ntasks-per-node=1 "
    return [
        start + " ".join([job.cir, "study fit", task, *machines, *others]),
        'if test -e "$CIR_REQUEUE"; then exit 0; fi',
        start.replace("srun ", f"srun {alone}", 1) + " ".join([job.cir, "study test", task, *others]),
    ]


def _container(job: Job) -> str:
    """Options of pyxis: without them the container would see neither configs nor data, and lose what it writes."""
    if not job.container:
        return ""
    others = [f"{place}" if ":" in place else f"{place}:{place}" for place in job.mounts.split(",") if place]
    staged = ',"$staged:$staged"' if job.stage else ""
    mounts = f'"$PWD:$PWD"{staged}' + "".join(f",{shlex.quote(other)}" for other in others)
    return f'--container-image={shlex.quote(job.container)} --container-mount-home --container-workdir="$PWD" --container-mounts={mounts} '


def _end(job: Job) -> list[str]:
    """What the shell does after the tasks: start the job again where they ask for it, as a container has no ``scontrol``."""
    number = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if job.array else '"$SLURM_JOB_ID"'
    # An array's runs share their node's copy
    tidy = [f'  {ONCE} rm -rf "$staged" || :'] if job.stage and not job.array else []
    return [
        f'export CIR_REQUEUE="$PWD/runs/{job.name}/requeue-$SLURM_JOB_ID"',
        'rm -f "$CIR_REQUEUE"',
        "end() {",
        f'  if test -e "$CIR_REQUEUE"; then rm "$CIR_REQUEUE"; exec scontrol requeue {number}; fi',
        *tidy,
        "}",
        "trap end EXIT",
        "trap : TERM  # the tasks are told, too, and are waited for",
    ]


def _stage(job: Job) -> list[str]:
    """One copy for each node; what is there already, as after a restart, is not copied again, and nothing is there by half."""
    if not job.stage:
        return []
    there = '"${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/cir-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"'
    return [f"staged={there}", f'{ONCE} bash -c {shlex.quote(COPY)} copy "$staged" {shlex.quote(str(Path(job.stage).resolve()))}']


def _words(job: Job, devices: int) -> list[str]:
    folder = f"runs/{job.name}"
    configs = [*_cluster(job, devices), *map(shlex.quote, job.configs)]
    run = [f'--trainer.default_root_dir "{folder}"', "--ckpt_path last"] if job.command == "fit" else [f"--ckpt_path {folder}"]
    strategy = ["--trainer.strategy ddp"] if devices * job.nodes > 1 and not configs else []
    machines = [f"--trainer.num_nodes {job.nodes}", f"--trainer.devices {devices}", *strategy, "--trainer.enable_progress_bar false"]
    staged = ['--data.root "$staged"'] if job.stage else []
    given = [f"--config {config}" for config in configs]
    return [job.cir, job.command, *given, *run, *machines, *staged, *map(shlex.quote, job.options)]


def _cluster(job: Job, devices: int) -> list[str]:
    """The overlay below all others that says how processes share the work, unless one is named; a checkpoint's config is whole."""
    if not job.configs or any(_of_cluster(word) for word in (*job.configs, *job.options)):
        return []
    return ["cluster/ddp.yaml" if devices * job.nodes > 1 else "cluster/single.yaml"]


def _of_cluster(config: str) -> bool:
    return Path(config).parent.name == "cluster"


def kept(job: Job) -> Job:
    """The job with copies of its config files in its folder: started again, it reads what it was submitted with."""
    copies = [
        str(Path("runs", job.name, "configs", str(at), Path(config).resolve().parent.name, Path(config).name))
        if Path(config).is_file()
        else config  # a recipe, which changes with the code alone
        for at, config in enumerate(job.configs)
    ]
    return job._replace(configs=copies)


def submit(job: Job) -> int:
    """Hand a job over to Slurm; the exit code.

    Raises:
        UserError: a job of this name is queued or running, whose folder another one must not share.
    """
    asked = ["squeue", "--me", "--noheader", "--format=%i", f"--name={job.name}"]
    if number := subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip().partition("\n")[0]:
        raise UserError(f"job {number} has the name and the folder runs/{job.name}; wait for it, scancel it, or set another NAME")
    folder = Path("runs") / job.name
    folder.mkdir(parents=True, exist_ok=True)
    copied = kept(job)
    shutil.rmtree(folder / "configs", ignore_errors=True)
    for config, copy in zip(job.configs, copied.configs, strict=True):
        if config != copy:
            Path(copy).parent.mkdir(parents=True)
            shutil.copyfile(config, copy)
    path = folder / "job.sh"
    path.write_text(render(copied), encoding="utf-8")
    return subprocess.run(["sbatch", str(path)], check=False).returncode


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def read(argv: list[str]) -> tuple[Job, bool]:
    """The job, and whether it is only shown."""
    parser = _Parser(prog="slurm", allow_abbrev=False)
    parser.add_argument("command", choices=["fit", "test", "study"])
    for name, kind in Job.__annotations__.items():
        if name in {"nodes", "gpus", "tasks", "cpus"}:
            parser.add_argument(f"--{name}", type=int, default=Job._field_defaults[name])
        elif name not in {"command", "options", "online", "array"}:
            assert kind
            parser.add_argument(f"--{name}", default=Job._field_defaults.get(name, ""))
    parser.add_argument("--online", default="")
    parser.add_argument("--options", default="")
    parser.add_argument("--dry", default="")
    asked = vars(parser.parse_args(argv))
    dry, online = (asked.pop(switch) not in {"", "0"} for switch in ("dry", "online"))
    study, configs = asked["command"] == "study", shlex.split(asked["configs"])
    asked |= {
        "configs": configs,
        "online": online,
        "options": tuple(shlex.split(asked["options"])),
        "array": _runs(configs) if study else 0,
    }
    asked["command"] = "fit" if study else asked["command"]
    asked["name"] = asked["name"] or (Path(configs[0]).stem if configs else "")
    return Job(**asked).check(), dry


def _runs(configs: list[str]) -> int:
    """How many runs a study has."""
    from cir_lightning.study import plan  # needs PyYAML, which a job without a study does not

    if len(configs) != 1:
        raise UserError(f"CONFIG={' '.join(configs)!r} is not one study; name a file, or one of {', '.join(plan.names())}")
    return len(plan.read(configs[0]).tasks)


def main(argv: list[str]) -> int:
    """Show or submit a job; the exit code."""
    try:
        job, dry = read(argv)
        if dry:
            print(render(job), end="")
            return 0
        return submit(job)
    except FileNotFoundError:
        print("slurm: there is no sbatch here; log in where jobs are submitted, or set DRY=1 to see the script", file=sys.stderr)
    except OSError as error:
        print(f"slurm: cannot write {error.filename}: {error.strerror}; run make where runs/ can be written", file=sys.stderr)
    except (UserError, ValueError) as error:
        print(f"slurm: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
