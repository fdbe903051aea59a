"""Checkpoints of what is trained, read strictly; and the config that travels in them."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from cir_lightning.yaml_text import parse
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG_KEY = "config"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # what a run goes on with, and what it goes on with where that is damaged


def _kept(module: nn.Module) -> set[str]:
    """Names of trainable parameters and of persistent buffers outside the frozen parts."""
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    state = module.state_dict()
    buffers = {name for name, _ in module.named_buffers() if name in state and not {"backbone", "tower", "vision"} & set(name.split("."))}
    return names | buffers


def trained_state(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state dict that training changes."""
    kept = _kept(module)
    return {name: value for name, value in state.items() if name in kept}


def load_trained(module: nn.Module, state: Mapping[str, Any], *, strict: bool = True) -> Any:
    """Load trained tensors: every one must be there and of the right shape, and nothing unknown; frozen ones come with the backbone.

    Returns:
        torch's record of missing and unexpected keys.

    Raises:
        UserError: the state is of another model; the first three tensors of each kind of difference are named. Nothing is loaded then.
    """
    mine = module.state_dict()
    differences = {
        "missing": _kept(module) - set(state),
        "unknown": set(state) - set(mine),
        "of another shape": {name for name in set(state) & set(mine) if state[name].shape != mine[name].shape},
    }
    if strict and any(differences.values()):
        parts = [f"{what}: {_first(names)}" for what, names in differences.items() if names]
        raise UserError(f"the weights are of another model ({'; '.join(parts)}); use the config that they were trained with")
    return nn.Module.load_state_dict(module, state, strict=False)


def _first(names: set[str], count: int = 3) -> str:
    return ", ".join(sorted(names)[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def find_checkpoint(path: Path, *names: str) -> Path:
    """A file as given; of a run folder, or of its folder ``checkpoints``, the first of these checkpoints that there is.

    Args:
        path: a file or a folder.
        names: by default the best one, or the last one of a run that ended before it was ever validated.
    """
    if not path.is_dir():
        return path
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    files = [folder / name for name in names or ("best.ckpt", "last.ckpt")]
    return next((file for file in files if file.is_file()), files[0])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file; nothing in it is executed.

    Raises:
        UserError: there is no such file, it is damaged, or it is not one of ours.
    """
    if not path.is_file():
        found = sorted(str(p) for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file; {'there are ' + ', '.join(found) if found else 'train one with cir fit'}")
    try:
        _check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except PermissionError as error:
        raise UserError(f"{path}: may not be read; use another checkpoint, or change the file's permissions") from error
    except Exception as error:  # damaged bytes make torch's reader raise nearly anything
        raise UserError(f"{path}: not a readable checkpoint, the file is cut off, damaged or of another kind; use another one") from error
    kinds = {CONFIG_KEY: str, "pytorch-lightning_version": str, "state_dict": dict, "tower": str}
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    wrong = [key for key, kind in kinds.items() if not isinstance(parts.get(key), kind)]
    if not wrong and not all(isinstance(tensor, Tensor) for tensor in parts["state_dict"].values()):
        wrong = ["state_dict"]
    if wrong:
        raise UserError(f"{path}: this file holds no {wrong[0]}, so cir fit did not write it; use one from a run folder")
    return parts


def _check_sums(path: Path) -> None:
    """Refuse what is no zip file, as torch writes, or has a part that is compressed, or another checksum than it was written with."""
    with zipfile.ZipFile(path) as file:
        if packed := [part.filename for part in file.infolist() if part.compress_type != zipfile.ZIP_STORED]:  # perhaps a bomb
            raise zipfile.BadZipFile(packed[0])
        if bad := file.testzip():
            raise zipfile.BadZipFile(bad)


def usable_checkpoint(path: Path) -> Path:
    """The checkpoint to go on with: the file itself, or of a ``last.ckpt`` that is damaged or missing the one before, which is said.

    Raises:
        UserError: neither can be read.
    """
    previous = path.with_name(PREVIOUS)
    if path.name != LAST or not previous.is_file():
        return path
    try:
        read_checkpoint(path)
    except UserError as error:
        read_checkpoint(previous)
        print(f"{error}; going on with {previous}, the one before")
        return previous
    return path


def parse_config(text: str, path: Path) -> dict[str, Any]:
    """The config that travels with weights.

    Args:
        text: YAML.
        path: the file that it was in.

    Raises:
        UserError: it is not the config of a run.
    """
    try:
        config = parse(text)
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict) or not all(_is_part(config.get(part)) for part in ("model", "data")):
        raise UserError(f"{path}: the config in this file is damaged; use another one")
    return config


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("init_args") or {}, dict)
