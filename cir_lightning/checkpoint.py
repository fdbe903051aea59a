"""Checkpoints of what is trained, read strictly; and the config that travels in them."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from torch import nn

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG_KEY = "config"


def _kept(module: nn.Module) -> set[str]:
    """Names of trainable parameters and of persistent buffers outside the frozen parts."""
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    state = module.state_dict()
    buffers = {name for name, _ in module.named_buffers() if name in state and not {"backbone", "tower"} & set(name.split("."))}
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
        raise UserError(f"the weights are of another model ({'; '.join(parts)}); use the config they were trained with: leave out --config")
    return nn.Module.load_state_dict(module, state, strict=False)


def _first(names: set[str], count: int = 3) -> str:
    return ", ".join(sorted(names)[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file; nothing in it is executed.

    Raises:
        UserError: there is no such file, it is damaged, or it is not one of ours.
    """
    import torch

    if not path.is_file():
        found = sorted(str(p) for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        raise UserError(f"--ckpt_path {path}: no such file; {'there are ' + ', '.join(found) if found else 'train one with cir fit'}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"--ckpt_path {path}: not a readable checkpoint ({str(error).splitlines()[0]}); use another one") from error
    keys = set(checkpoint) if isinstance(checkpoint, dict) else set()
    lacking = sorted({CONFIG_KEY, "state_dict", "tower", "pytorch-lightning_version"} - keys)
    if lacking or not isinstance(checkpoint[CONFIG_KEY], str):
        what = lacking[0] if lacking else CONFIG_KEY
        raise UserError(f"--ckpt_path {path}: this file holds no {what}, so cir fit did not write it; use one from a run folder")
    return dict(checkpoint)
