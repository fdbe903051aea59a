"""Alignment of the Connector before contrastive training: a picture must find its own title among others, without the LLM running.

A Connector from scratch speaks no language that a small LLM understands. Here its tokens learn to lie where the LLM's own token
embeddings of the picture's title lie: similarity is a late interaction (ColBERT, arXiv 2004.12832): for every title token the nearest
of the picture's tokens counts. As the LLM is not run, this costs little. It is our addition; the paper does not have it.

Shapes: B pictures, Q Connector queries, W title tokens, D LLM width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from cir_lightning import stops
from cir_lightning.distributed import draw_seed
from cir_lightning.encoder import IntentEncoder
from data_modules.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from cir_lightning.connector import Connector
    from cir_lightning.module import CIRModule


def late_interaction(image: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Mean over a title's tokens of the largest cosine with any of the picture's tokens.

    Args:
        image: (B, Q, D) float.
        words: (B, W, D) float, token embeddings of the titles around zero.
        mask: (B, W) bool, real title tokens.

    Returns:
        (B, B) float, picture i against title j.
    """
    cosines = torch.einsum("iqd,jwd->ijwq", F.normalize(image, dim=-1), F.normalize(words, dim=-1))
    best = cosines.max(-1).values
    return (best * mask).sum(-1) / mask.sum(-1)


class TitleAlignment(Callback):
    """Aligns the Connector when training starts; a run that starts from weights skips it, one that is resumed goes on where it was.

    Every process does the same, so that all start alike.

    Args:
        steps: optimizer steps; 0 switches it off.
        batch_size: pictures per step, all of them each other's negatives.
        lr: learning rate, with 50 steps of warm-up and a cosine to a twentieth.
    """

    def __init__(self, steps: int = 400, batch_size: int = 128, *, lr: float = 1e-3) -> None:
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.done = 0  # steps
        self._parts: dict[str, Any] = {}  # what has a state while it runs
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and what it needs to go on."""
        return {"done": self.done, **{name: part.state_dict() for name, part in self._parts.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there when training starts."""
        self._restored = dict(state_dict)
        self.done = self._restored.pop("done")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Refuse what cannot be aligned, before anything is computed.

        Raises:
            UserError: the encoder has no Connector, or the data set has too few titles.
        """
        module: CIRModule = pl_module  # type: ignore[assignment]
        if stage != "fit" or not self.steps or module.init_from:
            return
        if not isinstance(module.encoder, IntentEncoder) or module.encoder.connector is None:
            raise UserError(
                f"TitleAlignment needs a Connector, which {type(module.encoder).__name__} does not have; remove it from trainer.callbacks"
            )
        if len(pictures := self._titled(module)) < self.batch_size:
            raise UserError(
                f"TitleAlignment.batch_size={self.batch_size} is more than the {len(pictures)} training pictures with a title; set a "
                "smaller one, or remove it from trainer.callbacks"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Align."""
        module: CIRModule = pl_module  # type: ignore[assignment]
        if self.done < self.steps and not trainer.global_step and not module.init_from:
            self._align(trainer, module, torch.tensor(self._titled(module)))

    @staticmethod
    def _titled(module: CIRModule) -> list[int]:
        return [i for i in module.data.train_pictures() if module.data.pictures[i].title]

    def _align(self, trainer: Trainer, module: CIRModule, pictures: Tensor) -> None:
        from tqdm import tqdm

        connector: Connector = module.encoder.connector  # type: ignore[assignment]
        scale = nn.ParameterDict({"log": torch.tensor(math.log(20.0), device=module.device)})
        optimizer = torch.optim.AdamW([*connector.parameters(), *scale.parameters()], lr=self.lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        self._parts = {"scale": scale, "optimizer": optimizer, "schedule": schedule}
        for name, state in self._restored.items():
            self._parts[name].load_state_dict(state)
        with tqdm(total=self.steps, initial=self.done, desc="Aligning", unit="step", disable=not trainer.is_global_zero) as bar:
            while self.done < self.steps:
                if stops.asked:
                    raise KeyboardInterrupt
                torch.manual_seed(draw_seed(module.data.seed, "align", self.done))  # dropout: the same on every process, and after a resume
                draw = torch.Generator().manual_seed(module.data.seed * self.steps + self.done)
                chosen = pictures[torch.randperm(len(pictures), generator=draw)[: self.batch_size]]
                loss, found = self._loss(module, chosen, scale["log"].exp())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                if self.done % 20 == 0 or self.done == self.steps - 1:
                    bar.set_postfix(loss=f"{loss.item():.2f}", own_title=f"{found.item():.0%}")
                    self._log(trainer, self.done, {"align/loss": loss.item(), "align/own_title": found.item()})
                self.done += 1
                bar.update()
        self._parts = {}
        for parameter in connector.parameters():
            parameter.grad = None
            parameter.data = trainer.strategy.broadcast(parameter.data)  # dropout may have drawn differently elsewhere

    def _loss(self, module: CIRModule, chosen: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        encoder: IntentEncoder = module.encoder  # type: ignore[assignment]
        records = [module.data.pictures[i] for i in chosen.tolist()]
        words, mask = encoder.title_words([record.title for record in records])
        connector: Connector = encoder.connector  # type: ignore[assignment]
        image = connector(encoder.standardise(module.features_of(chosen)))
        score = late_interaction(image, words, mask) * scale
        content = module.data.content_ids[chosen].to(score.device)
        own = torch.arange(len(records), device=score.device)
        same = (content[:, None] == content) & (own[:, None] != own)
        score = score.masked_fill(same, float("-inf"))
        found = (score.argmax(1) == own).float().mean()
        return (F.cross_entropy(score, own) + F.cross_entropy(score.T, own)) / 2, found

    def _lr_factor(self, step: int) -> float:
        return min(1.0, (step + 1) / 50) * max(0.05, math.cos(math.pi / 2 * step / self.steps))

    @staticmethod
    def _log(trainer: Trainer, step: int, figures: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
