"""Embeddings gathered over batches and processes into one table, each sample exactly once.

Shapes: S samples of the data set, B batch, E embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class EmbeddingTable(Metric):
    """A table of embeddings in the order of the data set, whichever process saw which sample, and however often.

    Distributed samplers repeat samples to fill up the last batches; scattering by index makes the repetition harmless, so that the figures
    do not depend on the number of processes. Call ``update`` and ``compute``, not ``forward``: a batch alone is no complete table.

    Args:
        size: S, the number of samples.
        width: E, the embedding width.

    Example:
        >>> table = EmbeddingTable(size=3, width=2)
        >>> table.update(torch.tensor([2, 0]), torch.tensor([[0.6, 0.8], [1.0, 0.0]]))
        >>> table.update(torch.tensor([1, 2]), torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
        >>> table.compute()
        tensor([[1.0000, 0.0000],
                [0.0000, 1.0000],
                [0.6000, 0.8000]])
    """

    is_differentiable = False
    full_state_update = False

    index: list[Tensor]
    embedding: list[Tensor]

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.width = width
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self.add_state("embedding", default=[], dist_reduce_fx="cat")
        self._begin()

    def _begin(self) -> None:
        """Start the lists with empty tensors of the right shape: gathering aborts on a process that has none (torchmetrics 1.9)."""
        self.index.append(torch.empty(0, dtype=torch.int64, device=self.device))
        self.embedding.append(torch.empty(0, self.width, dtype=torch.float32, device=self.device))

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self._begin()

    def update(self, index: Tensor, embedding: Tensor) -> None:
        """Take in a batch.

        Args:
            index: (B,) int64, positions of the samples in the data set.
            embedding: (B, E) float of any precision, kept in float32.
        """
        self.index.append(index)
        self.embedding.append(embedding.detach().float())

    def compute(self) -> Tensor:
        """The table, (S, E) float32.

        Raises:
            RuntimeError: samples are missing.
        """
        index = dim_zero_cat(self.index)
        embedding = dim_zero_cat(self.embedding)
        missing = torch.ones(self.size, dtype=torch.bool, device=index.device)
        missing[index] = False
        if missing.any():
            first = int(missing.nonzero()[0])
            raise RuntimeError(
                f"{int(missing.sum())} of {self.size} embeddings are missing, the first one at index {first}: "
                "every sample of the data set must be encoded before the table is computed"
            )
        table = embedding.new_empty(self.size, self.width)
        table[index] = embedding
        return table
