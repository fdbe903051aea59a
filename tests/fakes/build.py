"""Short ways to the tiny model and its trainer."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from cir_lightning.backbones.lora import LoRA
from cir_lightning.connector import Connector, Resampler
from cir_lightning.encoder import IntentEncoder
from cir_lightning.loss import InfoNCE
from cir_lightning.module import CIRModule
from cir_lightning.prompt_pool import PromptPool, SoftPrompt
from fakes.tiny import TinyLVLM


def tiny_encoder(
    *, connector: Connector | None = None, soft_prompt: SoftPrompt | None = None, lora: LoRA | None = None, **options: Any
) -> IntentEncoder:
    """The tiny encoder, not built yet."""
    checkpointing = options.pop("gradient_checkpointing", False)
    return IntentEncoder(
        TinyLVLM(lora or LoRA(rank=4, alpha=8), gradient_checkpointing=checkpointing),
        connector or Resampler(4, 32, depth=1, heads=4),
        soft_prompt=soft_prompt or PromptPool(6, 2, chosen=2),
        **{"width": 32, **options},
    )


def built_encoder(**options: Any) -> IntentEncoder:
    """The tiny encoder with fixed weights."""
    torch.manual_seed(0)
    encoder = tiny_encoder(**options)
    encoder.build()
    return encoder


def tiny_module(seed: int = 0, *, encoder: IntentEncoder | None = None, **options: Any) -> CIRModule:
    """The tiny module; its weights are made by the trainer, from this seed."""
    seed_everything(seed, verbose=False)
    return CIRModule(encoder or tiny_encoder(), InfoNCE(temperature=0.1), **{"warmup_steps": 2, "monitor": "val/tiny/avg/R@1", **options})


def tiny_trainer(root: Any, **options: Any) -> Trainer:
    """A quiet trainer on one CPU process."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"accelerator": "cpu", "devices": 1, "use_distributed_sampler": False, "num_sanity_val_steps": 0, "default_root_dir": root}
    return Trainer(**{**quiet, **settings, **options})


def random_features(batch: int, seed: int = 1) -> Tensor:
    """Patch features of made-up pictures (B, 4, 24) float16."""
    return torch.randn(batch, 4, 24, generator=torch.Generator().manual_seed(seed)).half()
