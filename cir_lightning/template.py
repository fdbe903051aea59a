"""Prompt templates with holes: a query or a target is text around image tokens, soft prompts and the caption.

Shapes: B batch, Q image tokens, V native visual tokens, T soft prompt tokens, L longest sequence, D LLM width.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

HOLES = ("image", "vision", "soft", "caption")
_HOLE = re.compile(r"\{(\w*)\}")
_IMAGE, _SOFT, _VISION, _PAD = -1, -2, -3, -4  # marks among the token ids


class Template:
    """A task prompt such as ``"{image}{soft} Edit: {caption}"``.

    Args:
        text: the prompt with holes, each at most once: ``{image}`` for the Connector's tokens, ``{vision}`` for the LVLM's own visual
            tokens, at least one of both; ``{soft}``, ``{caption}``.
        key: where the text comes from, for error messages.

    Raises:
        UserError: an unknown, missing or repeated hole.
    """

    def __init__(self, text: str, key: str) -> None:
        holes = _HOLE.findall(text)
        if unknown := sorted(set(holes) - set(HOLES)):
            raise UserError(f"{key}={text!r} has the unknown hole {{{unknown[0]}}}; holes are {', '.join(f'{{{h}}}' for h in HOLES)}")
        if not {"image", "vision"} & set(holes) or len(set(holes)) < len(holes):
            raise UserError(f"{key}={text!r} must have the hole {{image}} or {{vision}} and no hole twice")
        pieces = _HOLE.split(text)  # text, hole, text, hole, ... text
        self.space = ""
        if "caption" in holes:
            before = pieces.index("caption", 1) - 1
            self.space = " " if pieces[before].endswith(" ") else ""  # tokenisers read " word" as one token
            pieces[before] = pieces[before].removesuffix(" ")
        self.parts = [(piece, at % 2 == 1) for at, piece in enumerate(pieces) if piece]
        self.has_caption, self.has_soft = "caption" in holes, "soft" in holes
        self.has_image, self.has_vision = "image" in holes, "vision" in holes
        self.key = key

    def fill(
        self,
        embed: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        image: Tensor,
        soft: Tensor,
        captions: Sequence[str] | None,
        vision: int = 0,
        ends: tuple[list[int], list[int]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The LLM's input.

        Args:
            embed: the LLM's token embedding.
            tokenizer: the LLM's.
            image: (B, Q, D) float, in the embedding's scale.
            soft: (B, T, D) float, in the embedding's scale; T may be 0.
            captions: B captions; None for a template without ``{caption}``.
            vision: V.
            ends: token ids before and after everything; None puts the tokenizer's beginning-of-sequence token first, if it has one (it
                takes the attention sink), and nothing last.

        Returns:
            Embeddings (B, L, D); mask (B, L) long, padded on the right; where the V native visual tokens belong, (B, L) bool.
        """
        first, last = ends or ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], [])
        marks = {"image": [_IMAGE] * image.shape[1], "soft": [_SOFT] * soft.shape[1], "vision": [_VISION] * vision}
        pieces: list[list[list[int]]] = []
        for part, is_hole in self.parts:
            if is_hole and part == "caption":
                pieces.append(tokenizer([self.space + caption for caption in captions or ()], add_special_tokens=False)["input_ids"])
            else:
                ids = marks[part] if is_hole else tokenizer(part, add_special_tokens=False)["input_ids"]
                pieces.append([ids] * len(image))
        rows = [torch.tensor(first + sum(row, []) + last) for row in zip(*pieces, strict=True)]  # noqa: RUF017 - five short lists
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_PAD).to(image.device)
        embeds = embed(ids.clamp_min(0)).to(image.dtype)
        embeds = embeds.masked_scatter((ids == _IMAGE)[..., None], image)
        embeds = embeds.masked_scatter((ids == _SOFT)[..., None], soft)
        return embeds, (ids != _PAD).long(), ids == _VISION
