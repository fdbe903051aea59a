"""A picture file becomes what a vision tower takes, in two stages that ``cir bench`` tells apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cir_lightning.stages import READ, TRANSFORM, stage
from data_modules.images import load_image, to_tensor

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from data_modules.images import Transform


def read_square(path: Path, box: tuple[int, int, int, int] | None, side: int, transform: Transform) -> Tensor:
    """The picture (3, side, side) uint8; see :func:`~data_modules.images.load_image` and :func:`~data_modules.images.to_tensor`.

    Raises:
        UserError: the picture cannot be read.
    """
    with stage(READ):
        image = load_image(path, box)
    with stage(TRANSFORM):
        return to_tensor(image, side, transform)
