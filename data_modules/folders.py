"""Where the packages keep what they can make again, and how a file comes into being."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def cache_root() -> Path:
    """The folder of everything that can be made again: ``$CIR_CACHE``, by default ``~/.cache/cir-lightning``."""
    return Path(os.environ.get("CIR_CACHE") or Path.home() / ".cache" / "cir-lightning").expanduser()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a temporary file beside ``path``, then put it in place of ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
