"""Pixels for models that look at pictures anew at every step; all others read patch features that were computed once."""

from __future__ import annotations

import math
import os
from random import Random
from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image

from data_modules.images import load_image, to_tensor
from data_modules.stages import READ, TRANSFORM, stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from data_modules.images import Transform
    from data_modules.records import Picture

Augment = Literal["none", "crop", "crop_flip"]
AREA, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


def augmented(image: Image.Image, how: Augment, draw: Random) -> Image.Image:
    """A random part of a picture, with ``crop_flip`` in half of the cases also mirrored (do without where captions name sides).

    The part has half to all of the area, and sides in proportions of 3:4 to 4:3 as far as the picture has room for that.

    Source: Szegedy et al., "Going deeper with convolutions" (arXiv 1409.4842), section 6, with half instead of 8 % of the area at least,
    as in BLIP (arXiv 2201.12086).
    """
    if how == "none":
        return image
    area, ratio = draw.uniform(*AREA) * image.width * image.height, math.exp(draw.uniform(*map(math.log, RATIO)))
    width = max(1, min(image.width, round(math.sqrt(area * ratio))))
    height = max(1, min(image.height, round(math.sqrt(area / ratio))))
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    flip = how == "crop_flip" and draw.random() < 0.5
    part = image.crop((left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else part


class PixelReader:
    """Reads pictures as squares, in the processes of a loader.

    Args:
        pictures: of the data set.
        side: S, pixels.
        transform: how pictures become squares.
        augment: what is done to them before.
    """

    def __init__(self, pictures: Sequence[Picture], side: int, transform: Transform, augment: Augment = "none") -> None:
        self.pictures, self.side, self.transform, self.augment = pictures, side, transform, augment

    def __call__(self, positions: Tensor, seed: float = 0.0) -> Tensor:
        """The pictures at these positions (n,) long, as (n, 3, S, S) uint8.

        Args:
            positions: in the data set's pictures.
            seed: of the augmentation; each picture has its own numbers.

        Raises:
            UserError: a picture cannot be read.
        """
        return torch.stack([self._square(at, seed) for at in positions.tolist()])

    def _square(self, at: int, seed: float) -> Tensor:
        picture = self.pictures[at]
        with stage(READ):
            image = load_image(picture.path, picture.box)
        with stage(TRANSFORM):
            return to_tensor(augmented(image, self.augment, Random(f"{seed} {at}")), self.side, self.transform)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
