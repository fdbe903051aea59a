"""Recipes and run folders without a run: a checkpoint with random adapters and modules over a base model."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from cir_lightning.api import make_encoder
from cir_lightning.checkpoint import CONFIG_KEY, trained_state
from cir_lightning.cli import main
from fakes.tiny import TinyCIR, TinyLVLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from cir_lightning.api import Retriever

CAPTION = "but red as a circle"
RESAMPLER = {"class_path": "cir_lightning.connector.Resampler", "init_args": {"queries": 4, "width": 32, "depth": 1, "heads": 4}}


TINY = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "callbacks": [{"class_path": "cir_lightning.alignment.TitleAlignment", "init_args": {"steps": 2, "batch_size": 8}}],
    },
    "model": {
        "monitor": "val/tiny/avg/R@1",
        "encoder": {
            "class_path": "cir_lightning.encoder.IntentEncoder",
            "init_args": {
                "backbone": {"class_path": f"fakes.tiny.{TinyLVLM.__name__}", "init_args": {"lora": {"rank": 2}}},
                "connector": {
                    "class_path": "cir_lightning.connector.Resampler",
                    "init_args": {"queries": 2, "width": 32, "depth": 1, "heads": 4},
                },
                "soft_prompt": {
                    "class_path": "cir_lightning.prompt_pool.PromptPool",
                    "init_args": {"size": 4, "tokens": 1, "chosen": 2},
                },
                "width": 16,
            },
        },
        "loss": {"temperature": 0.1},
    },
    "data": {"class_path": f"fakes.tiny.{TinyCIR.__name__}", "init_args": {}},
}


@contextmanager
def tiny_run(folder: Path) -> Iterator[Path]:
    """A folder with ``tiny.yaml`` and the finished run ``run``; commands meanwhile have their cache in it, too."""
    write_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(folder / "cache"))
        assert main(["fit", "--config", str(folder / "tiny.yaml")]) == 0
        yield folder


def write_recipe(folder: Path) -> Path:
    """Write ``tiny.yaml``, which trains the tiny model for two steps in ``run`` beside it."""
    config = json.loads(json.dumps(TINY))
    config["trainer"]["default_root_dir"] = str(folder / "run")
    config["data"]["init_args"]["root"] = str(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


def write_run(folder: Path, backbone: str, options: dict[str, Any], **encoder: Any) -> Path:
    """Write ``folder/checkpoints/best.ckpt``.

    Args:
        folder: of the run, new.
        backbone: its class within ``cir_lightning.backbones``.
        options: the class's arguments.
        encoder: arguments of the encoder, beside or instead of those below.
    """
    arguments = {
        "backbone": {"class_path": f"cir_lightning.backbones.{backbone}", "init_args": options},
        "connector": RESAMPLER,
        "soft_prompt": {"class_path": "cir_lightning.prompt_pool.PromptPool", "init_args": {"size": 6, "tokens": 2, "chosen": 2}},
        "query_template": "{image}{soft} Edit: {caption}",
        "target_template": "{image}{soft} Picture",
        "width": 32,
        "residual": True,
        **encoder,
    }
    config = {
        "trainer": {"max_steps": 3},
        "model": {"encoder": {"class_path": "cir_lightning.encoder.IntentEncoder", "init_args": arguments}},
        "data": {"class_path": "data_modules.shoes.Shoes", "init_args": {"root": "/home/me/shoes", "transform": "pad", "batch_size": 7}},
    }
    torch.manual_seed(3)
    built = make_encoder(config)
    built.build()
    for parameter in built.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    part = torch.nn.ModuleDict({"encoder": built})
    content = {
        "state_dict": trained_state(part, part.state_dict()) | {"loss.log_excess": torch.tensor(-2.0)},
        "tower": built.tower.key,
        "base": {option: base.key() for option, base in built.base_models().items()},
        CONFIG_KEY: yaml.safe_dump(config),
        "pytorch-lightning_version": "2.6.6",
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder


def vectors(model: Retriever, picture: Path) -> Tensor:
    """What a model makes of a query and of a gallery picture (2, E)."""
    return torch.stack([model.encode_query(picture, CAPTION), model.encode_pictures([picture])[0]])
