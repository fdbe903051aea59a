"""On what a run of ``cir bench`` was measured."""

from __future__ import annotations

import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cir_lightning import __version__
from cir_lightning.results import source_commit

SIDE = {"cpu": 2048, "cuda": 8192}
TIMES, LONGEST = 3, 3.0  # matrix products, and seconds that suffice for fewer


def header(command: str) -> dict[str, Any]:
    """Hardware, versions and when."""
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "gpu": None,
        "gpu_memory_bytes": None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: version(package) for package in ("transformers", "lightning")},
        "cir-lightning": __version__,
        "commit": source_commit(),
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"gpu": card.name, "gpu_memory_bytes": card.total_memory}
    return found


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if sys.platform == "linux" and file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def matrix_peak(device: torch.device, precision: str, side: int | None = None) -> float:
    """FLOP/s of a square matrix product in the trainer's precision just now: the best of three, or of as many as three seconds allow."""
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if precision.startswith("16") else torch.float32
    side = side or SIDE.get(device.type, SIDE["cpu"])
    left = torch.randn(side, side, device=device, dtype=dtype)
    best, begun = float("inf"), time.perf_counter()
    for number in range(TIMES):
        if number and time.perf_counter() - begun > LONGEST:
            break
        _wait(device)
        start = time.perf_counter()
        left @ left
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
