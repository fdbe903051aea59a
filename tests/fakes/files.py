"""Files of miniature benchmarks: JSON, and tiny pictures that can be told apart."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_picture(path: Path, seed: str, size: tuple[int, int] = (12, 9)) -> None:
    """Write a picture of four coloured quarters that the seed draws."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("RGB", (2, 2), random.Random(seed).randbytes(12))
    image.resize(size, Image.Resampling.NEAREST).save(path)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    """Change the content of a JSON file."""
    write_json(file, change(json.loads(file.read_text(encoding="utf-8"))))


def set_field(at: int, **fields: Any) -> Callable[[Any], Any]:
    """A change of some fields of one record in a list."""
    return lambda records: [{**record, **fields} if number == at else record for number, record in enumerate(records)]
