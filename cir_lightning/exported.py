"""The folder that ``cir export`` writes: its files, and how they are read back.

``config.yaml``            encoder with templates, transform of pictures, key of the vision tower, base models with their commits
``modules.safetensors``    what was trained beside the LLM: Connector, soft prompt, projection, residual, standardiser, temperature
``adapter_model.safetensors`` and ``adapter_config.json``    the LLM's adapters in PEFT's own format, or
``llm``                    the LLM with its adapters merged, a Hugging Face folder
``README.md``              the model card
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from cir_lightning.checkpoint import parse_config
from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from cir_lightning.encoder import Encoder

CONFIG, MODULES, ADAPTER, LLM = "config.yaml", "modules.safetensors", "adapter_model.safetensors", "llm"
IN_PEFT = "base_model.model."  # where peft has the LLM


def to_peft(name: str, llm: str) -> str:
    """A tensor of an adapter by PEFT's name.

    Args:
        name: the encoder's.
        llm: what the names of the LLM's tensors begin with in the encoder.

    >>> to_peft("encoder.backbone.llm.layers.0.self_attn.q_proj.lora_A.default.weight", "encoder.backbone.llm.")
    'base_model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    plain = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(".default.", ".")
    return IN_PEFT + plain.removeprefix(llm)


def from_peft(name: str, llm: str) -> str:
    """A tensor of an adapter by the encoder's name; the other way round of :func:`to_peft`."""
    plain = re.sub(r"(lora_[AB])\.weight$", r"\1.default.weight", llm + name.removeprefix(IN_PEFT))
    return re.sub(r"lora_magnitude_vector$", "lora_magnitude_vector.default.weight", plain)


def is_exported(folder: Path) -> bool:
    """Whether it is a folder that ``cir export`` wrote."""
    return (folder / MODULES).is_file() and (folder / CONFIG).is_file()


def read_exported(folder: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Trained tensors by the encoder's names, the key of the vision tower, and the config.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        config = parse_config((folder / CONFIG).read_text(encoding="utf-8"), folder / CONFIG)
        state, llm = load_file(folder / MODULES), config["llm"]
        if (folder / ADAPTER).is_file():
            state |= {from_peft(name, llm): tensor for name, tensor in load_file(folder / ADAPTER).items()}
        for shard in sorted((folder / LLM).glob("*.safetensors")):
            state |= {llm + name: tensor for name, tensor in load_file(shard).items()}
        return state, config["tower"], config
    except (SafetensorError, KeyError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder}: not what cir export wrote ({error}); export the model again") from error


def check_base(encoder: Encoder, config: dict[str, Any], name: str) -> None:
    """Refuse a base model that is not the one that was trained with, before its weights are read.

    Args:
        encoder: not built yet.
        config: of the export; that of a run names no base and is checked by its vision tower alone.
        name: of the export, for messages.

    Raises:
        UserError: its revision, or its files in a local folder, are others.
    """
    for option, checkpoint in encoder.base_models().items():
        wanted = config.get("base", {}).get(option)
        if wanted and wanted["key"] != (found := checkpoint.key()):
            raise UserError(
                f"{name}: was trained on the base model {wanted['key']!r}, but {checkpoint.name!r} is here {found!r}; get revision "
                f"{wanted['commit'] or 'of that content'} of {wanted['model']}"
            )
