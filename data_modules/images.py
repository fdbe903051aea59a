"""Picture files: reading them safely, turning them into tensors, telling their contents apart."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from data_modules.errors import UserError
from data_modules.picture_files import open_picture

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def load_image(path: Path) -> Image.Image:
    """Read a picture file upright (its EXIF orientation applied), transparency composed on white.

    Args:
        path: any format that Pillow reads; of an animation, the first frame.

    Returns:
        The picture in mode RGB.

    Raises:
        UserError: see :func:`data_modules.picture_files.open_picture`.
    """
    with open_picture(path) as image:
        return _on_white(ImageOps.exif_transpose(image))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips: all but the darkest 256 of 65536 greys become white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


TRANSFORM = "white-square-lanczos-v1"  # what to_tensor does; caches of what follows from it carry this name


def to_tensor(image: Image.Image, size: int) -> Tensor:
    """Scale a picture into a square, its proportions kept, the rest white.

    Args:
        image: mode RGB.
        size: side of the square, pixels.

    Returns:
        (3, size, size) uint8.
    """
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def content_hash(path: Path) -> str:
    """SHA-256 of the file's bytes, 64 hex digits: equal for equal files.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read picture file {path} ({error.strerror}); put it there, or make it readable") from error
