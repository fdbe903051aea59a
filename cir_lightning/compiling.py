"""``torch.compile`` for what runs at every step: the layers of the LLM, the Connector, and a vision transformer that is trained.

A frozen vision tower is left as it is: each picture goes through it once, ever, and what is cached must not depend on a flag.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from cir_lightning.backbones.base import layers_of
from data_modules.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from cir_lightning.encoder import Encoder


def compile_parts(encoder: Encoder, backend: Any = "inductor") -> None:
    """Compile in place, so that names of parameters stay; the first steps then take half a minute more.

    Batches and sequences may have any size: what differs between two of them is a symbol in what is compiled.

    Args:
        encoder: built.
        backend: of ``torch.compile``.

    Raises:
        UserError: there is nothing to compile, or no C++ compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise UserError("model.compiled needs a C++ compiler, such as g++, which is not found; install one, or set it to false")
    parts = parts_to_compile(encoder)
    if not parts:
        raise UserError(f"model.compiled: {type(encoder).__name__} has no large parts to compile; set it to false")
    for part in parts:
        part.compile(dynamic=True, backend=backend)


def parts_to_compile(encoder: Any) -> list[nn.Module]:
    """The layers of the LLM and of a trained vision transformer, and the Connector."""
    llm, connector = getattr(getattr(encoder, "backbone", None), "llm", None), getattr(encoder, "connector", None)
    eyes = encoder.tower.eyes if encoder.tower.trained else None
    layers = [layer for part in (llm, eyes) if part is not None for layer in layers_of(part)]
    return [*layers, *([] if connector is None else [connector])]
