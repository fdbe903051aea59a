"""Slurm for real on one machine: a slurmctld, two slurmd (nodes n1 and n2), and a munged of their own.

Needs root, and the programs of Debian's ``slurm-wlm`` and ``munge``. The nodes' names are put into ``/etc/hosts``, since processes find
each other by them, and taken out again.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[2]
HOSTS = Path("/etc/hosts")
NAMES = "127.0.0.1 n1 n2 # cir test-cluster\n"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CONF = """
ClusterName=cir
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=15
MinJobAge=7200
SlurmdTimeout=20
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 CoresPerSocket=16 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 CoresPerSocket=16 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
WAIT = 240.0


def impossible() -> str:
    """Why Slurm cannot be started here; empty if it can."""
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"no real Slurm can be started here, as {', '.join(missing)} is missing: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "no real Slurm can be started here, as this is not root: run make test-cluster as root"


class Cluster:
    """Two nodes. A context: started on entering, everything undone on leaving.

    Args:
        folder: where Slurm keeps its state and the jobs run; its path must be short, for sockets.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def start(self) -> None:
        """Start all daemons, and wait for both nodes."""
        for name in ("munge", "state", "spool/n1", "spool/n2"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        conf = CONF.format(host=socket.gethostname().partition(".")[0], folder=self.folder, ports=free_ports(3))
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (self.folder / "munge.key").chmod(0o400)
        HOSTS.write_text(HOSTS.read_text().replace(NAMES, "") + NAMES)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.do(
            "munged",
            "--force",
            f"--key-file={self.folder}/munge.key",
            *(f"--{key}={self.folder}/munge/{name}" for key, name in files.items()),
        )
        self.do("slurmctld")
        for node in ("n1", "n2"):
            self.do("slurmd", "-N", node)
        until(lambda: self.do("sinfo", "--noheader", "--format=%T", "--Node").split() == ["idle"] * 2, "two idle nodes", 30)

    def __exit__(self, *_: object) -> None:
        if self.do("squeue", "--noheader"):
            self.do("scancel", "--user=root")
            with suppress(AssertionError):
                until(lambda: not self.do("squeue", "--noheader"), "jobs to end", 30)
        self.stop()

    def stop(self) -> None:
        """End all daemons and what they started, and forget the nodes' names."""
        for pid in processes_with(f"SLURM_CONF={self.folder}/slurm.conf"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        HOSTS.write_text(HOSTS.read_text().replace(NAMES, ""))

    def do(self, *words: str, code: int = 0) -> str:
        """Run a program in the jobs' folder; what it says.

        Args:
            words: the program and its arguments.
            code: the exit code it must have.
        """
        done = subprocess.run(words, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip() + (done.stderr if code else "")

    def make(self, target: str, code: int = 0, **variables: object) -> str:
        """Type ``make TARGET NAME=value ...`` in the jobs' folder; what it says."""
        words = [
            f"{key}={value}" for key, value in {"GPUS": 0, "TIME": 20, "CIR": f"{sys.executable} -m cir_lightning.cli", **variables}.items()
        ]
        return self.do("make", "-s", "-f", str(ROOT / "Makefile"), target, *words, f"PYTHON={sys.executable}", code=code)

    def submit(self, target: str, **variables: object) -> str:
        """Submit by make; the job's number."""
        return self.make(target, **variables).rpartition(" ")[2]

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        return dict(pair.split("=", 1) for pair in self.do("scontrol", "show", "job", "-o", number).split() if "=" in pair)

    def wait(self, number: str, *states: str, seconds: float = WAIT) -> dict[str, str]:
        """Wait until a job has one of these states, by default ``COMPLETED``; what Slurm then knows of it."""
        wanted = states or ("COMPLETED",)
        until(lambda: self.job(number)["JobState"] in wanted, f"job {number} to be {' or '.join(wanted)}: {self.log(number)}", seconds)
        return self.job(number)

    def log(self, number: str) -> str:
        """What a job has said."""
        path = Path(self.job(number)["StdOut"])
        return path.read_text() if path.is_file() else ""

    def wait_for_line(self, number: str, line: str, times: int = 1, seconds: float = WAIT) -> None:
        """Wait until a job has said something so many times."""
        until(lambda: self.log(number).count(line) >= times, f"{line!r} {times} times in {self.job(number)['StdOut']}", seconds)

    def node_is_lost(self, name: str) -> None:
        """Kill a node's daemon and all that runs on it."""
        daemon = [pid for pid in processes_with(f"SLURM_CONF={self.folder}/slurm.conf") if f"slurmd\0-N\0{name}" in command_of(pid)]
        for pid in [*daemon, *processes_with(f"SLURMD_NODENAME={name}")]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.do("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")

    def node_is_back(self, name: str) -> None:
        """Start a node again; Slurm takes it back by itself (``ReturnToService``)."""
        self.do("slurmd", "-N", name)


def until(true: object, what: str, seconds: float) -> None:
    """Wait until a function returns something true.

    Raises:
        AssertionError: it did not in this time.
    """
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens at."""
    with_socket = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_socket]
    for server in with_socket:
        server.close()
    return ports


def command_of(pid: int) -> str:
    """The words of a process, with NUL between them."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


def processes_with(setting: str) -> list[int]:
    """Processes that have this in their environment, without this one and those below it that are not Slurm's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if setting in path.read_bytes().decode(errors="replace").split("\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def steps_done(log: str) -> Iterable[int]:
    """The steps at which a job's runs were stopped."""
    return map(int, re.findall(r"stopped at step (\d+)", log))
