"""Checkpoints of what is trained, read strictly; and the config that travels in them."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

CONFIG_KEY = "config"


def _kept(module: nn.Module) -> set[str]:
    """Names of trainable parameters and of persistent buffers outside the frozen backbone."""
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    state = module.state_dict()
    buffers = {name for name, _ in module.named_buffers() if name in state and ".backbone." not in f".{name}"}
    return names | buffers


def trained_state(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state dict that training changes."""
    kept = _kept(module)
    return {name: value for name, value in state.items() if name in kept}


def load_trained(module: nn.Module, state: Mapping[str, Any], result: Any, *, strict: bool) -> Any:
    """Check the result of a non-strict load: every trained tensor must have been there, and nothing unknown.

    Raises:
        UserError: a trained tensor is missing or an unknown one is present; the first three of each are named.
    """
    missing = sorted(_kept(module) - set(state))
    unexpected = sorted(result.unexpected_keys)
    if strict and (missing or unexpected):
        parts = [
            f"{what} {names[:3]}{' ...' if len(names) > 3 else ''}"
            for what, names in (("missing", missing), ("unknown", unexpected))
            if names
        ]
        raise UserError(f"the checkpoint is of another model: {'; '.join(parts)}; use the config it was trained with (leave out --config)")
    return result


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
    if not isinstance(checkpoint, dict) or CONFIG_KEY not in checkpoint:
        raise UserError(f"--ckpt_path {path}: this file holds no config, so it was not written by cir fit; use one from a run folder")
    return checkpoint
