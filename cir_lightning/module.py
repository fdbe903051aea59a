"""The LightningModule: steps, logging, optimizer groups; no maths.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from cir_lightning.cache import FeatureCache
from cir_lightning.checkpoint import CONFIG_KEY, load_trained, trained_state
from cir_lightning.chunks import WithinMemory, in_chunks
from cir_lightning.compiling import compile_parts
from cir_lightning.distributed import draw_seed, mean
from cir_lightning.encoder import Sight
from cir_lightning.exported import check_base
from cir_lightning.pictures import spread
from cir_lightning.precision import check_precision
from cir_lightning.retrieval.figures import averages, names, score
from cir_lightning.retrieval.metrics import EmbeddingTable
from cir_lightning.retrieval.protocol import check
from cir_lightning.retrieval.ranking import Ranking, rank_all
from cir_lightning.sharding import ShardedBase
from cir_lightning.weights import find_weights, read_weights
from data_modules.collate import PictureBatch, QueryBatch, TripletBatch, distinct
from data_modules.errors import UserError
from data_modules.stages import FEATURES, LOSS, RANKING, stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from cir_lightning.encoder import Encoder
    from cir_lightning.loss import InfoNCE
    from data_modules.base import CIRDataModule, Split
    from data_modules.records import EvaluationSet

_SPLITS: dict[str, tuple[Split, ...]] = {"fit": ("val",), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
STATISTICS = 256 * 2**20  # bytes of features that the standardiser is fitted on, at most


class CIRModule(LightningModule):
    """Contrastive training and exact retrieval evaluation of any :class:`~cir_lightning.encoder.Encoder`.

    Logs ``train/loss`` of the batch of all processes, ``train/temperature`` and, in percent, every figure of every evaluation set and of
    their averages, by name: ``val/fashioniq/original/avg/R@10``.

    Args:
        encoder: the model.
        loss: the contrastive loss.
        monitor: the headline metric: the figure that chooses ``best.ckpt``, higher being better: ``val/emoji/avg/R@1``.
        lr: learning rate of new modules (Connector, soft prompt, projection, temperature).
        lora_lr: learning rate of LoRA adapters.
        weight_decay: AdamW's, on matrices only.
        warmup_steps: the learning rates rise linearly over so many steps and then fall along a cosine to ``final_lr`` times themselves.
        final_lr: fraction of the learning rates at the end.
        compiled: let torch.compile make the LLM's layers and the Connector faster; the first steps take half a minute more.
        chunk: pictures, queries or targets whose activations are in memory at once (:mod:`cir_lightning.chunks`): batches are then not
            limited by memory, and a step takes a third longer; None for all of a batch.
        init_from: weights to start from: a run folder, a checkpoint file or the name of packaged weights (``emoji``); unlike
            ``--ckpt_path``, which goes on with a run, this starts a new one.
        top: length of the ranked lists that are kept for pictures and predictions.
        yardsticks: print what the frozen parts reach without the model, too; it takes the features of the training pictures.
    """

    def __init__(
        self,
        encoder: Encoder,
        loss: InfoNCE,
        *,
        monitor: str,
        lr: float = 5e-4,
        lora_lr: float = 2e-3,
        weight_decay: float = 0.05,
        warmup_steps: int = 20,
        final_lr: float = 0.02,
        compiled: bool = False,
        chunk: int | None = None,
        init_from: str | None = None,
        top: int = 50,
        yardsticks: bool = True,
    ) -> None:
        super().__init__()
        if top < 1:
            raise UserError(f"model.top={top} is not possible; set it above 0")
        for key, value in (("lr", lr), ("lora_lr", lora_lr)):
            if not 0 < value < 1:
                raise UserError(f"model.{key}={value} is not possible; set it above 0 and below 1, such as 5e-4")
        for key, value in (("weight_decay", weight_decay), ("warmup_steps", warmup_steps)):
            if not 0 <= value < math.inf:
                raise UserError(f"model.{key}={value} is not possible; set it to 0 or more")
        if not 0 <= final_lr <= 1:
            raise UserError(f"model.final_lr={final_lr} is not possible; it is a fraction of the learning rates, from 0 to 1")
        if chunk is not None and chunk < 1:
            raise UserError(f"model.chunk={chunk} is not possible; set it to 1 or more, or to null for whole batches")
        self.encoder, self.loss, self.compiled, self.chunk = encoder, loss, compiled, chunk
        self.lr, self.lora_lr, self.weight_decay = lr, lora_lr, weight_decay
        self.warmup_steps, self.final_lr, self.init_from = warmup_steps, final_lr, init_from
        self.top, self.yardsticks, self.monitor = top, yardsticks, monitor
        self.rankings: dict[str, tuple[EvaluationSet, Ranking]] = {}
        self.run_config = ""  # the command line puts the whole configuration here, as text,
        self.restores = False  # and here, whether a checkpoint is about to be loaded, which Lightning does not yet know in setup
        self._built = False
        self.within_memory = WithinMemory()

    @property
    def data(self) -> CIRDataModule:
        """The trainer's data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]

    # ---- building and features -------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Read the weights, once."""
        if not self._built:
            self.encoder.restored = self.restores or self.init_from is not None
            strategy = self.trainer.strategy if self._trainer else None
            part = strategy is None or isinstance(strategy, ShardedBase)  # of which a share alone may fit the process' own device
            with nullcontext() if part else strategy.tensor_init_context():  # type: ignore[union-attr]
                self.encoder.build()
            self._built = True
            if isinstance(strategy, ShardedBase):
                strategy.shard(self.encoder)
            if self.compiled:
                compile_parts(self.encoder)
            if self.init_from:
                self._start_from(find_weights(self.init_from))

    def _start_from(self, path: Path) -> None:
        state, tower, config = read_weights(path)
        self._check_tower(tower)
        check_base(self.encoder, config, str(path))
        self.load_state_dict(state)
        rank_zero_info(f"starting from the weights {path}")

    def _check_tower(self, tower: str) -> None:
        if tower != self.encoder.tower.key:
            raise UserError(f"the weights were trained on the vision tower {tower!r}, not on {self.encoder.tower.key!r}; use their config")

    def setup(self, stage: str) -> None:
        """Refuse what cannot train, and get the patch features of every picture that this stage needs."""
        if self.encoder.quantised and not isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise UserError(
                f"backbone.quantisation does not go with trainer.strategy={type(self.trainer.strategy).__name__}, which shards weights; "
                "use ddp, where every process has all of them, or set quantisation to none"
            )
        check_precision(self.trainer.precision, self.trainer.strategy.root_device.type)
        if self.chunk is not None and isinstance(self.trainer.strategy, ShardedBase):
            raise UserError(
                f"model.chunk={self.chunk} does not go with trainer.strategy=sharded, as processes differ in their chunks; use ddp"
            )
        self._check_protocols(stage)
        self.configure_model()  # Lightning calls it after setup, which already needs the tower
        trained = self.restores or bool(self.init_from)
        training = stage == "fit" or not trained or (self.yardsticks and stage != "predict")
        needed = self.data.train_pictures() if training else []
        for split in _SPLITS[stage]:
            needed += self.data.evaluation_pictures(split)
        self._see(sorted(set(needed)))
        self._bring_pixels(stage)
        if not trained:  # else a checkpoint brings its own statistics
            self._standardise(self.data.train_pictures() or needed)

    def _bring_pixels(self, stage: str) -> None:
        """Have batches hold pixels where features of once do not do."""
        trained, augment = self.encoder.tower.trained, self.data.augment
        if trained or (augment != "none" and stage == "fit"):
            why = "adapters on the vision tower" if trained else f"data.augment={augment}"
            which = "pictures" if trained else "training pictures"
            rank_zero_info(f"{why}: {which} go through the vision tower at every step; cached features serve what is left")
            self.data.bring_pixels(self.encoder.tower.image_size, evaluation=trained)

    def _standardise(self, positions: list[int]) -> None:
        """Take the statistics of these pictures' features; where they are very many, of some that are evenly spread."""
        most = max(1, STATISTICS // self.features[:1].nbytes)
        chosen = torch.tensor([positions[at] for at in spread(len(positions), most)])
        self.encoder.standardise.fit(self.features_of(chosen))

    def _check_protocols(self, stage: str) -> None:
        sets = [evaluation for split in _SPLITS[stage] for evaluation in self.data.evaluation_sets(split)]
        for evaluation in sets:
            check(evaluation)
        promised = _flat("val", [(evaluation, dict.fromkeys(names(evaluation), 0.0)) for evaluation in sets])
        if stage == "fit" and sets and self.monitor not in promised:
            raise UserError(f"model.monitor={self.monitor!r} is no figure of this benchmark; choose one of {', '.join(sorted(promised))}")

    def _see(self, positions: list[int]) -> None:
        """Get the patch features of these pictures."""
        self.data.require_pictures(positions)
        pictures = [self.data.pictures[at] for at in positions]
        self.features = FeatureCache(self.encoder.tower, self.data.transform).open(pictures)
        own = self.encoder.vision
        self.vision = None if own is None else FeatureCache(own, self.data.transform).open(pictures)
        self.feature_row = torch.full((len(self.data.pictures),), -1)
        self.feature_row[positions] = torch.arange(len(positions))

    def features_of(self, pictures: Tensor) -> Tensor:
        """Patch features (B, N, Dv) of pictures (B,) long, positions in ``data.pictures``."""
        return self.features[self.feature_rows(pictures.cpu())].to(self.device, non_blocking=True)

    def see(self, pictures: Tensor, pixels: Tensor | None = None) -> Sight:
        """What the encoder sees in pictures (B,) long, positions in ``data.pictures``, or in their pixels if given, (B, 3, S, S)."""
        if pixels is not None:
            return self.encoder.look(pixels)
        with stage(FEATURES):
            vision = None if self.vision is None else self.vision[self.feature_rows(pictures.cpu())].to(self.device, non_blocking=True)
            features = self.features_of(pictures)
        return self.encoder.see(features, vision)

    def feature_rows(self, pictures: Tensor) -> Tensor:
        """Rows (B,) of ``features`` of pictures (B,) long, positions in ``data.pictures``.

        Raises:
            RuntimeError: setup did not get the features of one of them.
        """
        rows = self.feature_row[pictures]
        if (rows < 0).any():
            raise RuntimeError(f"setup did not get the features of {int((rows < 0).sum())} of {len(rows)} pictures")
        return rows

    # ---- training --------------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: TripletBatch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Random numbers of a step (dropout) follow from seed, epoch, batch and process alone: a resumed run draws what it would have."""
        torch.manual_seed(draw_seed(self.data.seed, self.trainer.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: TripletBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """InfoNCE of a batch of triplets; each distinct picture goes through the Connector and the target encoder once."""
        size = len(batch.captions)
        pictures, place = distinct(batch.reference, batch.target)
        numbers = torch.arange(len(pictures), device=pictures.device)
        sight = Sight.join(in_chunks(lambda some: self.see(pictures[some], _some(batch.pixels, some)), numbers, self.chunk))
        query = self._encode_queries(sight.at(place[:size]), batch.captions)
        targets, where = place[size:].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        target = torch.cat(in_chunks(lambda some: self.encoder.encode_target(sight.at(some)), targets, self.chunk))[where]
        with stage(LOSS):
            contrast = self.loss(query, target, batch.content)
        pull = sight.pull[place].mean()  # of every reference and target, so that it does not depend on how processes share the batch
        losses = mean(torch.stack([contrast, pull]).detach())  # of the batch of all processes
        shown = {"train/loss": losses[0], "train/pull": losses[1], "train/temperature": self.loss.temperature}
        self.log_dict(shown, batch_size=size, prog_bar=False)
        self.log("loss", losses[0], prog_bar=True, logger=False, batch_size=size)
        self.last_chosen, self.last_batch, self.last_embeddings = sight.chosen, batch, (query.detach(), target.detach())
        total: Tensor = contrast + pull
        return total

    def _encode_queries(self, sight: Sight, captions: Sequence[str]) -> Tensor:
        def encode(some: Tensor) -> Tensor:
            return self.encoder.encode_query(sight.at(some), [captions[at] for at in some.tolist()])

        lengths = torch.tensor(list(map(len, captions)))
        order = torch.arange(len(lengths)) if self.chunk is None else lengths.argsort(stable=True)  # like lengths share a chunk
        return torch.cat(in_chunks(encode, order, self.chunk))[order.argsort()]

    def configure_optimizers(self) -> Any:
        """AdamW with two learning rates; linear warm-up, then a cosine over the whole run."""
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = []
        for lora, lr in ((False, self.lr), (True, self.lora_lr)):
            for matrix, decay in ((True, self.weight_decay), (False, 0.0)):
                chosen = [p for name, p in named if ("lora_" in name) is lora and (p.ndim > 1) is matrix]
                groups += [{"params": chosen, "lr": lr, "weight_decay": decay}] if chosen else []
        full = self.trainer.precision == "32-true"  # under autocast, Lightning refuses to clip the gradients of a fused optimizer
        optimizer = torch.optim.AdamW(groups, fused=full)
        total = self.trainer.estimated_stepping_batches
        if self.warmup_steps >= total:
            rank_zero_warn(f"model.warmup_steps={self.warmup_steps} of {total:.0f} steps: the learning rate never gets where it is set to")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._lr_factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lr_factor(self, step: int, total: float) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))

    # ---- evaluation ------------------------------------------------------------------------------------------------------------

    def _start_evaluation(self, split: Split) -> None:
        sizes = len(self.data.gallery_pictures(split)), len(self.data.distinct_queries(split))
        self.tables = [EmbeddingTable(size, self.encoder.width).to(self.device) for size in sizes]

    def _evaluation_step(self, batch: PictureBatch | QueryBatch) -> None:
        def encode(some: slice) -> Tensor:
            if isinstance(batch, PictureBatch):
                return self.encoder.encode_target(self.see(batch.picture[some], _some(batch.pixels, some)))
            return self.encoder.encode_query(self.see(batch.reference[some], _some(batch.pixels, some)), batch.captions[some])

        table = self.tables[0 if isinstance(batch, PictureBatch) else 1]
        table.update(batch.index, self.within_memory(encode, len(batch.index)))

    def _finish_evaluation(self, split: Split) -> None:
        """Rank every evaluation set of the split; the same on every process, because the tables are."""
        pictures, queries = (table.compute() for table in self.tables)
        sets, place = self.data.evaluation_sets(split), self.data.distinct_queries(split)
        rows = [torch.tensor([place[query.reference, query.caption] for query in evaluation.queries]) for evaluation in sets]
        with stage(RANKING):
            rankings = rank_all(queries, pictures, sets, rows=rows, names=self.data.gallery_pictures(split), top=self.top)
        self.rankings = {evaluation.name: (evaluation, ranking) for evaluation, ranking in zip(sets, rankings, strict=True)}

    def _log_figures(self, split: Split) -> None:
        """Log every figure; the headline is on the progress bar."""
        flat = _flat(self.data.scored(split), [(one, score(ranking, one)) for one, ranking in self.rankings.values()])
        self.log_dict(flat, rank_zero_only=False)
        self.log("headline", flat.get(self.monitor, math.nan), prog_bar=True, logger=False)

    def on_validation_epoch_start(self) -> None:
        """Empty tables."""
        self._start_evaluation("val")

    def validation_step(self, batch: PictureBatch | QueryBatch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        """Encode."""
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        """Rank and log; nothing in the sanity check, whose gallery is incomplete."""
        if not self.trainer.sanity_checking:
            self._finish_evaluation("val")
            self.ranked_at = self.trainer.global_step
            self._log_figures("val")

    def on_test_epoch_start(self) -> None:
        """Empty tables."""
        self._start_evaluation("test")

    def test_step(self, batch: PictureBatch | QueryBatch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        """Encode."""
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        """Rank and log."""
        self._finish_evaluation("test")
        self._log_figures("test")

    def on_predict_epoch_start(self) -> None:
        """Empty tables."""
        self._start_evaluation("predict")

    def predict_step(self, batch: PictureBatch | QueryBatch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        """Encode."""
        self._evaluation_step(batch)

    def on_predict_epoch_end(self) -> None:
        """Rank; the ``Predictions`` callback writes the lists."""
        self._finish_evaluation("predict")

    # ---- checkpoints -----------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained, and what it was trained on."""
        checkpoint["state_dict"] = trained_state(self, checkpoint["state_dict"])
        if "optimizer_states" in checkpoint and self.loss.past is not None:
            checkpoint["memory"] = {"past": self.loss.past, "past_id": self.loss.past_id}
        checkpoint["tower"] = self.encoder.tower.key
        checkpoint["base"] = {option: base.key() for option, base in self.encoder.base_models().items()}
        if self.run_config:
            checkpoint[CONFIG_KEY] = self.run_config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose frozen tower is another one."""
        self._check_tower(str(checkpoint.get("tower")))
        for option, base in self.encoder.base_models().items():
            base.check_trained(checkpoint.get("base", {}).get(option, base.key()), "the checkpoint", "use the model of then")

        for name, value in checkpoint.get("memory", {}).items():
            setattr(self.loss, name, value.to(self.device))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: FBT001, FBT002 - torch's
        """Strict about what is trained; frozen weights come with the backbone."""
        del assign
        return load_trained(self, state_dict, strict=strict)


def _some(pixels: Tensor | None, some: Tensor | slice) -> Tensor | None:
    return None if pixels is None else pixels[some]


def _flat(split: Split, scored: Sequence[tuple[EvaluationSet, Mapping[str, float]]]) -> dict[str, float]:
    """The figures of the sets and of their averages by the name that they are logged under: ``val/fashioniq/original/avg/R@10``."""
    named = {evaluation.name: figures for evaluation, figures in scored} | averages(scored)
    return {f"{split}/{name}/{key}": value for name, figures in named.items() for key, value in figures.items()}
