"""The one gather of the framework: rows of all processes, with exact gradients.

Own code, because ``torch.distributed.nn.all_gather`` is deprecated (torch 2.13) and ``LightningModule.all_gather`` changes its shape with
the number of processes (https://github.com/Lightning-AI/pytorch-lightning/issues/19195).

Shapes: B batch per process, W processes.
"""

from __future__ import annotations

import hashlib
import os
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist

from data_modules.stages import GATHER, stage

if TYPE_CHECKING:
    from torch import Tensor


LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")  # what gloo says of other processes


def world_size() -> int:
    """W, the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in 0..W-1; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def lost_others(error: RuntimeError) -> str | None:
    """What a process says that waited for another one in vain; None for any other error.

    Args:
        error: raised by a collective.
    """
    reason = re.sub(r"^\[\S+:\d+\] ", "", " ".join(str(error).split()))  # without the place in the sources of gloo
    if not isinstance(error, dist.DistError) and not any(words in reason for words in LOST):
        return None
    ours = (frame for frame in traceback.extract_tb(error.__traceback__) if "cir_lightning" in frame.filename)
    frames = [frame for frame in ours if Path(frame.filename) != Path(__file__)]
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno} ({frames[-1].name})" if frames else ""
    return (
        f"process {os.environ.get('RANK') or rank()} waited{place} for another process, which has ended or hangs ({reason[:160]}); its own "
        "message says why, see its output"
    )


def draw_seed(*what: int | str) -> int:
    """A seed for torch that follows from all of this and nothing else.

    >>> draw_seed(0, "align", 3) == draw_seed(0, "align", 3) != draw_seed(0, "align", 4)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big") >> 1


def gather(x: Tensor) -> Tensor:
    """Gather rows from all processes; gradients flow back to the process that a row came from.

    A loss over the local rows against the gathered rows, without a factor W, has after DDP's averaging exactly the gradient of one process
    with the whole batch.

    Args:
        x: float (B, ...), the same shape on every process (train loaders drop the last, smaller batch), or the collective stalls.

    Returns:
        float (W * B, ...), in the order of the ranks; ``x`` itself if there is one process.
    """
    with stage(GATHER):
        return cast("Tensor", _Gather.apply(x)) if world_size() > 1 else x  # type: ignore[no-untyped-call]


def gather_ids(ids: Tensor) -> Tensor:
    """Gather integers from all processes.

    Args:
        ids: long (B,), the same B on every process.

    Returns:
        long (W * B,), in the order of the ranks; ``ids`` itself if there is one process.
    """
    with stage(GATHER):
        return _all_gather(ids) if world_size() > 1 else ids


def mean(x: Tensor) -> Tensor:
    """The mean over all processes, without gradients.

    Args:
        x: float, of the same shape on every process.
    """
    if world_size() > 1:
        dist.all_reduce(x := x.clone())
    return x / world_size()


def _all_gather(x: Tensor) -> Tensor:
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """Every process uses every row, so a row's gradient is the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # all_reduce writes in place
        dist.all_reduce(total)
        return total[rank() * ctx.rows :][: ctx.rows]
