"""Picture files: reading them safely, turning them into tensors, telling their contents apart."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

MAX_PIXELS = 100_000_000  # 300 MB as RGB; small files can claim far more ("decompression bombs")


def load_image(path: Path) -> Image.Image:
    """Read a picture file upright (its EXIF orientation applied), transparency composed on white.

    Args:
        path: any format that Pillow reads; of an animation, the first frame.

    Returns:
        The picture in mode RGB.

    Raises:
        UserError: the file is missing, is not a picture, is damaged, has more than ``MAX_PIXELS`` pixels, or has 32 bits per pixel
            without colours, of which nobody knows what is black and what is white.
    """
    try:
        with Image.open(path) as image:
            _check(image, path)
            return _on_white(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no picture file {path}; put it there, or check the folder that the data set's pictures are in") from error
    except Image.DecompressionBombError as error:
        raise UserError(_too_large(path, "an extreme number of pixels")) from error
    except (OSError, SyntaxError, EOFError, ValueError, struct.error) as error:  # what Pillow's readers raise on damaged files
        raise UserError(f"cannot read picture {path} ({error}); replace the file, or download it again if it is cut off") from error


def _check(image: Image.Image, path: Path) -> None:
    """Refuse by what the file's header says, before its pixels are read."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(_too_large(path, f"{width} x {height} pixels"))
    if image.mode in ("I", "F"):
        raise UserError(f"cannot read picture {path} (32 bits per pixel, mode {image.mode}); save it with 8 bits per colour")


def _too_large(path: Path, size: str) -> str:
    return f"picture {path} has {size}, the limit is {MAX_PIXELS // 1_000_000} million; scale it down first"


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
