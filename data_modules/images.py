"""Picture files: reading them safely, turning them into tensors, telling their contents apart."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from data_modules.errors import UserError
from data_modules.picture_files import MAX_PIXELS, open_picture

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def load_image(path: Path, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """Read a picture file upright (its EXIF orientation applied), transparency composed on white.

    Args:
        path: any format that Pillow reads; of an animation, the first frame.
        box: the part to take, see :func:`cut`; None for the whole picture.

    Returns:
        The picture in mode RGB.

    Raises:
        UserError: see :func:`data_modules.picture_files.open_picture`, or the box is not in the picture.
    """
    with open_picture(path) as image:
        whole = _on_white(ImageOps.exif_transpose(image))
    try:
        return cut(whole, box)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips: all but the darkest 256 of 65536 greys become white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def cut(image: Image.Image, box: tuple[int, int, int, int] | None) -> Image.Image:
    """The part of a picture in a box, as far as the picture goes, made a square by black edges; without a box, the picture.

    Args:
        image: mode RGB.
        box: left, top, right, bottom, pixels.

    Raises:
        UserError: the box is not in the picture.

    Source: GeneCIS (Vaze et al., CVPR 2023), ``datasets/vaw_dataset.py``.
    """
    if box is None:
        return image
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(image.width, box[2]), min(image.height, box[3])
    if left >= right or top >= bottom:
        raise UserError(f"box {box} is not in its picture of {image.width} x {image.height} pixels; use the picture that the box is of")
    part = _squarable(image.crop((left, top, right, bottom)))
    side = max(part.size)
    square = Image.new("RGB", (side, side), "black")
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return square


def _squarable(image: Image.Image) -> Image.Image:
    """The picture, smaller if a square around it would have more than ``MAX_PIXELS``, as one around a thin strip may."""
    factor = math.ceil(max(image.size) / math.isqrt(MAX_PIXELS))
    return image.reduce(factor) if factor > 1 else image


def _letterbox(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return square


def _middle(image: Image.Image, longest: int) -> Image.Image:
    left, top = (max(0, (side - longest) // 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def _plain(image: Image.Image, size: int) -> Image.Image:
    if max(image.size) > (longest := 4 * min(image.size)):  # scaled as a whole, a thin strip would not fit into memory
        image = _middle(image, longest)
    width, height = (size * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def _pad(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if max(width, height) / min(width, height) < PAD_RATIO:
        return _plain(image, size)
    image = _squarable(image)
    width, height = image.size
    side = max(width, height) / PAD_RATIO
    beside, above = (max(0, int((side - length) / 2)) for length in (width, height))
    padded = Image.new("RGB", (width + 2 * beside, height + 2 * above), "black")
    padded.paste(image, (beside, above))
    return _plain(padded, size)


def _squash(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


PAD_RATIO = 1.25
Transform = Literal["letterbox", "pad", "plain", "squash"]
_TRANSFORMS = {"letterbox": _letterbox, "pad": _pad, "plain": _plain, "squash": _squash}
TRANSFORM_VERSION = "v2"  # a change of what a transform does needs a new one: caches of what follows from it carry it


def to_tensor(image: Image.Image, size: int, transform: Transform = "letterbox") -> Tensor:
    """Turn a picture into a square.

    Args:
        image: mode RGB.
        size: side of the square, pixels.
        transform: ``letterbox`` keeps all of the picture and its proportions, white beside it. ``plain`` scales the shorter side and
            cuts the middle out. ``pad`` does so too, after black edges that bring the longer side to at most 1.25 times the shorter.
            ``squash`` keeps all of the picture and not its proportions.

    Returns:
        (3, size, size) uint8.

    Source: ``pad`` is that of CLIP4Cir (Baldrati et al., CVPR Workshops 2022, section 3.3) and SPRC; ``plain`` is CLIP's.
    """
    return torch.from_numpy(np.array(_TRANSFORMS[transform](image, size))).permute(2, 0, 1).contiguous()


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
