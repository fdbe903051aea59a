"""CIR-LVLM in PyTorch Lightning: composed image retrieval with a large vision-language model as encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cir_lightning.api import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``cir_lightning.load``, imported when it is asked for: the command line must not wait for torch."""
    if name == "load":
        from cir_lightning.api import load

        return load
    raise AttributeError(f"module 'cir_lightning' has no attribute {name!r}")
