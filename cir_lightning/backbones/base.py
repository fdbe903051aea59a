"""What the encoder needs of a large vision-language model: a frozen vision tower, a language model, its tokenizer.

Shapes: B pictures, N patches, Dv patch feature width, S picture side in pixels, V native visual tokens, L sequence, D LLM width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from cir_lightning.packing import WORTH, hidden_states, longest, padding
from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cir_lightning.backbones.checkpoints import Checkpoint


LARGEST = 65504.0  # of float16


def layers_of(llm: nn.Module) -> list[nn.Module]:
    """The transformer layers of a language model: of its lists of modules, the one with most parameters."""
    lists: list[nn.Module] = [part for part in llm.modules() if isinstance(part, nn.ModuleList)]
    return list(max(lists, key=lambda part: sum(p.numel() for p in part.parameters()), default=nn.ModuleList()).children())


class VisionTower(nn.Module, ABC):
    """A frozen picture encoder whose output never changes, so that it is computed once per picture (:mod:`cir_lightning.cache`).

    Attributes:
        trained: whether it has adapters after all: then :meth:`look` is what the model sees, at every step anew.
        image_size: side S of the square input, pixels.
        patches: number of patches N.
        width: patch feature width Dv.
        dtype: of the features: float16, or bfloat16, which has the same size, larger numbers and an eighth of the precision.
        key: everything that the features depend on besides the picture: model, revision, transform, output. A cache entry
            with another key is never used.
    """

    image_size: int
    patches: int
    width: int
    key: str
    dtype: torch.dtype = torch.float16
    trained: bool = False

    def look(self, pixels: Tensor) -> Tensor:
        """As :meth:`forward`; of a trained tower with its adapters, with gradients and not rounded."""
        out: Tensor = self(pixels)
        return out

    def rounded(self, features: Tensor) -> Tensor:
        """Features in :attr:`dtype`; what is larger than float16's largest number becomes that, as an infinity would make all NaN."""
        return features.clamp(-LARGEST, LARGEST).half() if self.dtype == torch.float16 else features.to(self.dtype)

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features.

        Args:
            pixels: (B, 3, S, S) uint8 RGB.

        Returns:
            (B, N, Dv) :meth:`rounded` here, so that cached and fresh features are the same numbers; row by row, where patches are a map.
        """


class Backbone(nn.Module, ABC):
    """A checkpoint: vision tower + LLM + tokenizer. Cheap to construct; :meth:`build` reads the weights.

    Attributes:
        label: the name in results tables of the method with this backbone.
        tower: the frozen vision tower, after :meth:`build`.
        vision: gives the visual tokens that the LVLM itself was trained with, (B, V, D) and perhaps more columns, for the template hole
            ``{vision}``; after :meth:`build`, None if it has none.
        has_vision: whether it has visual tokens of its own, for the hole ``{vision}``.
        quantised: whether its base weights are of 4 or 8 bits, which no strategy can shard.
        around: text that it was trained to read before and after its visual tokens.
        llm: the language model without its head, after :meth:`build`; its base weights are frozen.
        tokenizer: the language model's, after :meth:`build`.
        ends: token ids that every sequence begins and ends with, after :meth:`build`; None for what suits an LLM, see
            :meth:`cir_lightning.template.Template.fill`.
        packs: whether sequences may share rows, which :class:`cir_lightning.encoder.IntentEncoder` finds out.
        lockstep: whether every process must run the LLM equally often, because each has only a part of it.
        own_pooling: the position that the model was itself trained to be pooled at, after :meth:`build`; None for an LLM.
    """

    label: str = "CIR-LVLM"
    tower: VisionTower
    vision: VisionTower | None
    has_vision: bool = False
    quantised: bool = False
    around: tuple[str, str] = ("", "")
    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[list[int], list[int]] | None = None
    own_pooling: Literal["eos", "cls"] | None = None
    packs: bool = False
    lockstep: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.vision = None

    @abstractmethod
    def build(self) -> None:
        """Read the weights and make ``tower``, ``llm`` and ``tokenizer``."""

    def base_models(self) -> dict[str, Checkpoint]:
        """The checkpoints that it is built on, by the argument that is their revision; the LLM's is the last one."""
        return {}

    def save_merged(self, folder: Path) -> dict[str, str | None]:
        """Write what is read from a base model and had adapters, which were merged into it.

        Args:
            folder: new.

        Returns:
            The arguments, by name, with which the same backbone is built from ``folder``; the others stay.

        Raises:
            UserError: it cannot be written so.
        """
        raise UserError(f"--merge: {type(self).__name__} cannot be read from a folder of merged weights ({folder.name}); leave it out")

    def read(self, embeds: Tensor, mask: Tensor, seen: Tensor, vision: Tensor | None) -> Tensor:
        """The LLM's last hidden states (B, L, D).

        Args:
            embeds: (B, L, D) float, in the scale of the LLM's token embeddings.
            mask: (B, L) long, 1 for a real position, 0 for padding on the right.
            seen: (B, L) bool, where the native visual tokens belong; ``embeds`` says nothing there.
            vision: what :attr:`vision` gave; None if ``seen`` is False everywhere.
        """
        if vision is not None:
            embeds = embeds.masked_scatter(seen[..., None], vision.to(embeds.dtype))
        return self.run(embeds, mask)

    def run(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """The LLM's last hidden states (B, L, D) where there are no visual tokens, packed where that saves much."""
        embeds = embeds.to(self.llm.dtype)
        if self.packs and padding(mask) > WORTH and mask.shape[1] <= longest(self.llm):
            return hidden_states(self.llm, embeds, mask)
        hidden: Tensor = self.llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden

    @property
    def width(self) -> int:
        """Width D of the language model."""
        return int(self.llm.config.hidden_size)
