"""A tower of whose patch features less is kept than it gives: less disk, less memory, fewer tokens for the Connector to read.

Shapes: B pictures, N patches, Dv patch feature width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from cir_lightning.backbones.base import VisionTower
from data_modules.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

PatchDtype = Literal["float16", "bfloat16"]


def kept(tower: VisionTower, pooling: int, dtype: PatchDtype) -> VisionTower:
    """The tower itself, or what is kept of it.

    Args:
        tower: gives (B, N, Dv); if these N are no square map, only ``pooling=1`` is possible.
        pooling: side of the squares of neighbouring patches that are averaged; 1 for none.
        dtype: of the features.

    Raises:
        UserError: the patches are no map that such squares fill.
    """
    if dtype != "float16":
        tower.dtype, tower.key = getattr(torch, dtype), f"{tower.key}-{dtype}"
    return tower if pooling == 1 else Pooled(tower, pooling)


class Pooled(VisionTower):
    """Means of squares of neighbouring patches."""

    def __init__(self, tower: VisionTower, pooling: int) -> None:
        super().__init__()
        self.tower, self.pooling, self.side = tower, pooling, math.isqrt(tower.patches)
        if self.side**2 != tower.patches or self.side % pooling:
            raise UserError(
                f"model.encoder.patch_pooling={pooling}: the {tower.patches} patches of this vision tower are no square map that squares "
                f"of {pooling} x {pooling} fill; set it to 1"
            )
        self.image_size, self.width, self.dtype, self.trained = tower.image_size, tower.width, tower.dtype, tower.trained
        self.patches, self.key = (self.side // pooling) ** 2, f"{tower.key}-pooled{pooling}"

    @property
    def device(self) -> torch.device:
        """See :class:`VisionTower`."""
        return self.tower.device

    @property
    def eyes(self) -> nn.Module:
        """The vision transformer of a tower that is trained."""
        eyes: nn.Module = self.tower.eyes  # type: ignore[assignment]
        return eyes

    def forward(self, pixels: Tensor) -> Tensor:
        """See :class:`VisionTower`."""
        return self.rounded(self._pool(self.tower(pixels)))

    def look(self, pixels: Tensor) -> Tensor:
        """See :class:`VisionTower`."""
        return self._pool(self.tower.look(pixels)) if self.trained else self(pixels)

    def _pool(self, features: Tensor) -> Tensor:
        grid = features.float().transpose(1, 2).reshape(len(features), -1, self.side, self.side)
        return F.avg_pool2d(grid, self.pooling).flatten(2).transpose(1, 2)
