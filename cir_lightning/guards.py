"""What stops a training that has gone wrong, or warns of one that goes nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.utils import get_total_norm

from data_modules.errors import UserError

if TYPE_CHECKING:
    from typing import Any

    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

    from cir_lightning.module import CIRModule

OnNonfinite = Literal["stop", "skip"]
ALIKE = 0.98  # mean cosine of different targets above which embeddings have collapsed
SHOWN = 3


class Guards(Callback):
    """Stops at a gradient that is no number, and warns when embeddings, temperature or prompts have collapsed; logs the gradient's norm.

    Args:
        on_nonfinite: ``stop``, or ``skip`` such batches, which are counted.
        every: steps between two looks at what may collapse, which begin after the warm-up.
    """

    def __init__(self, on_nonfinite: OnNonfinite = "stop", every: int = 50) -> None:
        self.on_nonfinite, self.every = on_nonfinite, every
        self.skipped = 0
        self.said: set[str] = set()

    def state_dict(self) -> dict[str, int]:
        """The count goes on when a run does."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """See :meth:`state_dict`."""
        self.skipped = state_dict["skipped"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Look at the gradient, which is that of all processes and the same on each."""
        module: CIRModule = pl_module  # type: ignore[assignment]
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded parameters
        module.log("train/grad_norm", norm)
        if torch.isfinite(norm) or trainer.precision == "16-mixed":  # whose scaler looks for itself
            return
        if self.on_nonfinite == "stop":
            raise UserError(f"step {trainer.global_step}: {explained(module, float(norm))}")
        for parameter in module.parameters():
            parameter.grad = None
        module.loss.forget()
        self.skipped += 1
        rank_zero_warn(f"step {trainer.global_step}: batch skipped, the {self.skipped}. of this run; {explained(module, float(norm))}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Look for what has collapsed."""
        module: CIRModule = pl_module  # type: ignore[assignment]
        if trainer.global_step % self.every or trainer.global_step <= module.warmup_steps:
            return
        alike = mean_cosine(module.last_embeddings[1], batch.content)
        if alike > ALIKE:
            self._warn(
                f"the embeddings of different targets have a mean cosine of {alike:.3f}: everything looks alike to the model; try a lower "
                "model.lr and model.lora_lr, a longer warm-up, or larger batches (model.chunk)"
            )
        loss = module.loss
        if loss.log_excess.requires_grad and float(loss.temperature.detach()) < 1.02 * loss.floor:
            self._warn(
                f"the temperature has come down to its bound {loss.floor:g}; try loss.min_temperature below it, a fixed temperature, or a "
                "lower model.lr"
            )
        chosen = module.last_chosen
        if chosen is not None and len(chosen) > 1 and bool((chosen.sort(1).values == chosen[0].sort().values).all()):
            self._warn("the prompt pool gives every picture the same prompts; try a larger model.encoder.soft_prompt.init_args.pull")

    def _warn(self, what: str) -> None:
        """Once per run."""
        kind = what.split()[1]
        if kind not in self.said:
            self.said.add(kind)
            rank_zero_warn(what)


def mean_cosine(vectors: Tensor, ids: Tensor) -> float:
    """Mean cosine of pairs of unit vectors (B, E) with different ids (B,); 0 where there is no such pair."""
    different = ids[:, None] != ids
    return float((vectors @ vectors.T)[different].mean()) if different.any() else 0.0


def explained(module: CIRModule, norm: float) -> str:
    """What is no number, and in which triplets of this process's batch."""
    batch, (query, target) = module.last_batch, module.last_embeddings
    bad = (~(torch.isfinite(query).all(1) & torch.isfinite(target).all(1))).nonzero().flatten().tolist()
    names = [picture.name for picture in module.data.pictures]
    triplets = [f"{names[batch.reference[i]]} + {batch.captions[i]!r} -> {names[batch.target[i]]}" for i in bad[:SHOWN]]
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    where = f"of {', '.join(triplets)}{more}" if bad else "of no triplet of this process's batch"
    return (
        f"the gradient's norm is {norm}, and embeddings {where} are no numbers; look at these pictures and captions, lower model.lr and "
        "model.lora_lr, or leave such batches out with --on_nonfinite skip"
    )
