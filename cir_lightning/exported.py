"""The folder that ``cir export`` writes: its files, and how they are read back.

``config.yaml``            encoder with templates, transform of pictures, key of the vision tower, base models with their commits, and
                           checksums of the next two files
``modules.safetensors``    what was trained beside the LLM: Connector, soft prompt, projection, residual, standardiser, temperature
``adapter_model.safetensors`` and ``adapter_config.json``    the LLM's adapters in PEFT's own format, or
``merged``                 the base model with its adapters merged, a folder that the backbone reads in the place of the base
``README.md``              the model card
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from cir_lightning.checkpoint import parse_config
from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from cir_lightning.encoder import Encoder

CONFIG, MODULES, ADAPTER, MERGED = "config.yaml", "modules.safetensors", "adapter_model.safetensors", "merged"
IN_PEFT = "base_model.model."  # where peft has the LLM
KINDS = {"tower": str, "llm": str, "base": dict, "merged": list, "checks": dict}  # in config.yaml, beside the encoder and the data


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


def backbone_arguments(model: dict[str, Any]) -> dict[str, Any]:
    """Those of the backbone within an encoder's part of a config; to be changed in place."""
    arguments: dict[str, Any] = ((model.get("init_args") or {}).get("backbone") or {}).get("init_args") or {}
    return arguments


def is_exported(folder: Path) -> bool:
    """Whether it is a folder that ``cir export`` wrote."""
    return (folder / MODULES).is_file() and (folder / CONFIG).is_file()


def checksum(path: Path) -> int:
    """CRC-32 of a file: safetensors has none, and would give other weights for a flipped bit."""
    return zlib.crc32(path.read_bytes())


def read_exported(folder: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Trained tensors by the encoder's names, the key of the vision tower, and the config, in which ``merged`` has its place.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        config = parse_config((folder / CONFIG).read_text(encoding="utf-8"), folder / CONFIG)
        wrong = [key for key, kind in KINDS.items() if not isinstance(config.get(key), kind)]
        wrong += [f"base.{option}" for option, base in dict(config.get("base") or {}).items() if not isinstance(base.get("key"), str)]
        if wrong:
            raise UserError(f"{folder / CONFIG}: {wrong[0]} is missing or of another type; export the model again")
        arguments = backbone_arguments(config["model"]["encoder"])
        arguments |= {option: str(folder / arguments[option]) for option in config["merged"]}
        _refuse_damaged(folder, config["checks"])
        state, llm = load_file(folder / MODULES), config["llm"]
        if (folder / ADAPTER).is_file():
            state |= {from_peft(name, llm): tensor for name, tensor in load_file(folder / ADAPTER).items()}
        return state, config["tower"], config
    except (SafetensorError, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: not what cir export wrote ({error!r}); export the model again") from error


def _refuse_damaged(folder: Path, checks: dict[str, int]) -> None:
    if damaged := [name for name, check in checks.items() if checksum(folder / name) != check]:
        raise UserError(
            f"{folder / damaged[0]}: damaged, its checksum is not the one in {CONFIG}; copy the folder again, or export the model again"
        )


def check_base(encoder: Encoder, config: dict[str, Any], name: str) -> None:
    """Refuse a base model that is not the one that was trained with, before its weights are read.

    Args:
        encoder: not built yet.
        config: of an export or a run.
        name: of the export or the run, for messages.

    Raises:
        UserError: it is not here, or its revision, or its files in a local folder, are others.
    """
    for option, checkpoint in encoder.base_models().items():
        if wanted := config.get("base", {}).get(option):
            commit = wanted.get("commit")
            try:
                checkpoint.key()
            except UserError as error:
                place = "" if commit or "merged" not in config else f"; if your copy of it lies elsewhere, say so in {name}/{CONFIG}"
                raise UserError(f"{name}: {error}{place}") from error
            remedy = f"get revision {commit} of {wanted['model']}" if commit else "get the files that it was trained on"
            checkpoint.check_trained(wanted["key"], name, remedy)
