"""The contrastive loss between query and target embeddings.

Shapes: B batch per process, W processes, E embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn
from torch.utils.checkpoint import checkpoint

from cir_lightning.distributed import gather, gather_ids, rank
from data_modules.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


ROWS = 1024  # queries whose cosines with all targets are in memory at once


class InfoNCE(nn.Module):
    """InfoNCE with the targets of all processes as negatives.

    With unit vectors q_i, t_i, temperature tau and the n = W * B pairs of all processes::

        L = -1/n sum_i log( exp(q_i . t_i / tau) / sum_j exp(q_i . t_j / tau) )

    Column j != i is left out of row i where both targets are the same picture: it is no negative. The last ``memory`` targets of earlier
    batches are further columns, without gradient: negatives that cost nothing and are a little out of date. Each process returns the
    mean over its own B rows; DDP's average of the gradients is then the gradient of L, also for tau.

    A learned temperature is ``min_temperature + exp(p)`` with p the parameter. A clamp would give p no gradient at the bound, and tau
    could never rise again. Weight decay would pull p to 0, that is tau to about 1: exclude it.

    Args:
        direction: ``query_to_target`` is L, as retrieval asks; ``both`` is the mean of L and of the same with q and t exchanged.
        temperature: tau, at the start if it is learned.
        learn_temperature: whether tau is trained.
        min_temperature: lower bound of a learned tau; without effect on a fixed one.
        memory: targets of earlier batches, of all processes, that are negatives, too.

    Raises:
        UserError: ``temperature`` is not above its lower bound, or ``min_temperature`` is negative; ``memory`` is negative.

    Source: CIR-LVLM (arXiv 2412.11087), training objective, after CPC (arXiv 1807.03748), equation 4. Direction, tau, gather and mask are
    our choices; SPRC too uses ``query_to_target`` and a learnable tau. Memory: cross-batch memory (arXiv 1912.06798), section 3.2.

    Example:
        >>> loss = InfoNCE(temperature=0.5, learn_temperature=False)
        >>> pairs = torch.eye(2)
        >>> loss(pairs, pairs, torch.tensor([7, 8]))  # log(1 + exp(-2))
        tensor(0.1269)
    """

    past: Tensor | None
    past_id: Tensor

    def __init__(
        self,
        direction: Literal["both", "query_to_target"] = "query_to_target",
        temperature: float = 0.05,
        *,
        learn_temperature: bool = True,
        min_temperature: float = 0.01,
        memory: int = 0,
    ) -> None:
        super().__init__()
        if memory < 0:
            raise UserError(f"loss: memory={memory} is below 0; set `loss.memory` to 0 or more")
        self.direction = direction
        self.floor = min_temperature if learn_temperature else 0.0
        if not 0 <= self.floor < temperature:
            raise UserError(
                f"loss: temperature={temperature} with min_temperature={min_temperature}, learn_temperature={learn_temperature}; "
                "set 0 <= `loss.min_temperature` < `loss.temperature`"
            )
        self.memory = memory
        self.register_buffer("past", None, persistent=False)
        self.register_buffer("past_id", None, persistent=False)
        self.log_excess = nn.Parameter(torch.tensor(math.log(temperature - self.floor)), requires_grad=learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """Tau now, float scalar."""
        return self.floor + self.log_excess.exp()

    def forget(self) -> None:
        """Let go of the targets of earlier batches."""
        self.past = None

    def forward(self, query: Tensor, target: Tensor, target_id: Tensor) -> Tensor:
        """Compute this process's share of the loss.

        Args:
            query: float32 (B, E), unit vectors; the same B on every process.
            target: float32 (B, E), unit vectors; row i answers query i.
            target_id: long (B,), equal for targets that are the same picture.

        Returns:
            float32 scalar, the mean over the local rows.

        Raises:
            UserError: there is one pair in all, which leaves no negative.
        """
        targets, ids = gather(target), gather_ids(target_id)
        if len(ids) == 1:
            raise UserError("loss: a batch of 1 has no in-batch negatives; set `data.batch_size` to 2 or more")
        label = torch.arange(len(query), device=query.device) + rank() * len(query)
        columns, column_ids = self._with_past(targets, ids)
        loss = self._mean(query, target_id, columns, column_ids, label)
        if self.direction == "both":
            loss = (loss + self._mean(target, target_id, gather(query), ids, label)) / 2
        return loss

    def _with_past(self, targets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (n, E) and ids (n,) with those of earlier batches behind them; while training, these are remembered, too."""
        if not self.memory:
            return targets, ids
        columns, column_ids = (targets, ids) if self.past is None else (torch.cat([targets, self.past]), torch.cat([ids, self.past_id]))
        if self.training:
            self.past, self.past_id = columns[: self.memory].detach(), column_ids[: self.memory]
        return columns, column_ids

    def _mean(self, rows: Tensor, row_ids: Tensor, columns: Tensor, column_ids: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of rows (B, E) against columns (n, E), a part of the rows at a time: their cosines never exist all at once."""
        parts = list(zip(rows.split(ROWS), row_ids.split(ROWS), label.split(ROWS), strict=True))  # type: ignore[no-untyped-call]
        if len(parts) == 1:
            return self._sum(*parts[0], columns, column_ids) / len(rows)
        sums = [checkpoint(self._sum, *part, columns, column_ids, use_reentrant=False) for part in parts]
        return torch.stack(sums).sum() / len(rows)

    def _sum(self, rows: Tensor, row_ids: Tensor, label: Tensor, columns: Tensor, column_ids: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):  # bfloat16 cosines are off by 0.004, over tau by 0.1
            logits = rows @ columns.T / self.temperature
        false_negative = (row_ids[:, None] == column_ids).scatter(1, label[:, None], value=False)
        return F.cross_entropy(logits.masked_fill(false_negative, -torch.inf), label, reduction="sum")
