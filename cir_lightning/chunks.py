"""Batches larger than memory: while training, by a gradient cache; while evaluating, by smaller pieces.

Gradient cache: a contrastive batch in chunks, of which one at a time has its activations in memory. Every chunk runs twice: once for its
embeddings, without keeping activations, and once more when the loss's gradient with respect to these embeddings has come back. Random
numbers (dropout) are replayed. Loss and gradient are those of the whole batch at once, to rounding, and to a strategy such as DDP it is one
backward pass, whose gradients it reduces once.

Source: Gao et al., "Scaling deep contrastive learning batch size under memory limited setup" (arXiv 2101.06983), section 3.2; each chunk is
a checkpoint of torch's, which does the same and needs neither a loop of its own over the optimizer's steps nor ``no_sync``.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

T = TypeVar("T")


def in_chunks(run: Callable[[Tensor], T], members: Tensor, size: int | None) -> list[T]:
    """Run on all of a batch.

    Args:
        run: what to do with members (n,) long of the batch; must change nothing.
        members: (B,) long.
        size: members of a chunk; None for all of them at once, whose activations are kept.

    Returns:
        What ``run`` gave for each chunk.
    """
    if size is None:
        return [run(members)]

    def once(part: Tensor) -> T:
        if part.device.type == "cpu":
            give_memory_back()
        return run(part)

    return [checkpoint(once, part, use_reentrant=False) for part in members.split(size)]  # type: ignore[no-untyped-call]


class WithinMemory:
    """Encodes in pieces that a GPU's memory holds, whose size it finds by halving.

    Attributes:
        size: of the pieces; None as long as whole batches fit.
    """

    size: int | None = None

    def __call__(self, encode: Callable[[slice], Tensor], count: int) -> Tensor:
        """What ``encode`` makes of the members of a batch, (count, E).

        Raises:
            torch.OutOfMemoryError: not even one fits.
        """
        while True:
            size = min(count, self.size or count)
            try:
                return torch.cat([encode(slice(at, min(at + size, count))) for at in range(0, count, size)])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self.size = size // 2
            torch.cuda.empty_cache()
            print(f"out of memory with {size} at once: evaluation goes on with {self.size}; set data.eval_batch_size to that")


def give_memory_back() -> None:
    """Let glibc return to the system what is free: chunks differ in size, and it would take some 50 MB more for each of them."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # other C libraries do without
        trim(0)
