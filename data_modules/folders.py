"""Where the packages keep what they can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder of everything that can be made again: ``$CIR_CACHE``, by default ``~/.cache/cir-lightning``."""
    return Path(os.environ.get("CIR_CACHE") or Path.home() / ".cache" / "cir-lightning").expanduser()
