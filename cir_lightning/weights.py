"""Trained weights on their own: a safetensors file with the config of the encoder that they belong to.

``python -m cir_lightning.weights CHECKPOINT FILE`` makes one of a checkpoint, in half precision; it is how the packaged weights came
into being.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cir_lightning.checkpoint import CONFIG_KEY, find_checkpoint, parse_config, read_checkpoint
from cir_lightning.exported import MODULES, is_exported, read_exported
from cir_lightning.storage import replace_file
from data_modules.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGED = Path(__file__).parent / "pretrained"


def find_weights(name: str) -> Path:
    """A run folder's best (or else last) checkpoint, what ``cir export`` wrote, a file as given, or the packaged weights of that name.

    Raises:
        UserError: there is none of them; the packaged ones are named.
    """
    if is_exported(Path(name)):
        return Path(name) / MODULES
    for candidate in (find_checkpoint(Path(name)), PACKAGED / f"{name}.safetensors"):
        if candidate.is_file():
            return candidate
    packaged = ", ".join(sorted(file.stem for file in PACKAGED.glob("*.safetensors"))) or "none"
    raise UserError(f"no weights at {name!r}: give a run folder, a checkpoint file, or the name of packaged weights ({packaged})")


def read_weights(path: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Trained tensors by name, the key of their vision tower, and the whole config of their run, with the keys of its base models.

    Raises:
        UserError: the file is damaged or of another kind.
    """
    if path.name == MODULES and is_exported(path.parent):
        return read_exported(path.parent)
    if path.suffix != ".safetensors":
        checkpoint = read_checkpoint(path)
        config = parse_config(checkpoint[CONFIG_KEY], path)
        if base := checkpoint.get("base"):
            config["base"] = {option: {"key": key} for option, key in base.items()}
        return checkpoint["state_dict"], checkpoint["tower"], config
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            config = parse_config(about[CONFIG_KEY], path)
            return {name: file.get_tensor(name) for name in file.keys()}, about["tower"], config  # noqa: SIM118
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{path} holds no readable weights ({error}); make it again with python -m cir_lightning.weights") from error


def export(checkpoint: Path, file: Path) -> None:
    """Write the trained tensors of a checkpoint in float16, without optimizer state."""
    state, tower, config = read_weights(checkpoint)
    half = {name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}
    about = {"tower": tower, CONFIG_KEY: yaml.safe_dump(config)}
    replace_file(file, lambda part: save_file(half, part, about))


def main(arguments: list[str]) -> int:
    """``python -m cir_lightning.weights CHECKPOINT FILE``; the exit code."""
    try:
        checkpoint, file = arguments
        export(find_weights(checkpoint), Path(file))
    except ValueError as error:  # also UserError
        print(error if isinstance(error, UserError) else "usage: python -m cir_lightning.weights CHECKPOINT FILE", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
