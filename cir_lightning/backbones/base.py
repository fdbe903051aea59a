"""What the encoder needs of a large vision-language model: a frozen vision tower, a language model, its tokenizer.

Shapes: B pictures, N patches, Dv patch feature width, S picture side in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class VisionTower(nn.Module, ABC):
    """A frozen picture encoder whose output never changes, so that it is computed once per picture (:mod:`cir_lightning.cache`).

    Attributes:
        image_size: side S of the square input, pixels.
        patches: number of patches N.
        width: patch feature width Dv.
        key: everything that the features depend on besides the picture: model, revision, transform, output. A cache entry
            with another key is never used.
    """

    image_size: int
    patches: int
    width: int
    key: str

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features.

        Args:
            pixels: (B, 3, S, S) uint8 RGB.

        Returns:
            (B, N, Dv) float16; rounded here so that cached and fresh features are the same numbers.
        """


class Backbone(nn.Module, ABC):
    """A checkpoint: vision tower + LLM + tokenizer. Cheap to construct; :meth:`build` reads the weights.

    Attributes:
        tower: the frozen vision tower, after :meth:`build`.
        llm: the language model without its head, after :meth:`build`; its base weights are frozen.
        tokenizer: the language model's, after :meth:`build`.
    """

    tower: VisionTower
    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @abstractmethod
    def build(self) -> None:
        """Read the weights and make ``tower``, ``llm`` and ``tokenizer``."""

    @property
    def width(self) -> int:
        """Width D of the language model."""
        return int(self.llm.config.hidden_size)
