"""Sequences of different lengths through a causal LLM without computing padding: several share a row, and none sees another.

Works with every attention that takes a mask. Positions begin anew in every sequence, so that a packed one gets what it would get alone.

Shapes: B sequences, L longest of them, R rows, W row width, D LLM width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

LITTLE = 1.01  # of the least that rows can take in all: what attention in narrower rows saves is more
WIDTH = 256  # tokens in a row, about; attention costs more in longer ones, and shorter ones are filled less evenly
WASTE = 0.05  # share of padding where sequences of like length have a pass of their own
WORTH = 0.03  # padded batches with less padding than this share stay as they are


class Layout(NamedTuple):
    """Where every sequence lies.

    Attributes:
        place: (T,) long, of every token in the order of the sequences, its place in the flattened rows.
        number: (R, W) long, which sequence a token belongs to; -1 for padding.
        position: (R, W) long, of the token in its sequence.
    """

    place: Tensor
    number: Tensor
    position: Tensor


def deal(lengths: Sequence[int], rows: int) -> tuple[int, list[tuple[int, int]]]:
    """The longest sequences first, each into the row with the fewest tokens: width of the rows, row and start of each sequence."""
    filled, places = [0] * rows, [(0, 0)] * len(lengths)
    for which in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        row = filled.index(min(filled))
        places[which] = row, filled[row]
        filled[row] += lengths[which]
    return max(filled), places


def layout(lengths: Sequence[int]) -> Layout:
    """Deal sequences to rows of nearly the same number of tokens: the narrowest rows near the wanted width that waste little.

    >>> layout([3, 1, 2]).number.tolist()  # of 6 tokens, one row
    [[0, 0, 0, 2, 2, 1]]
    """
    wanted = sum(lengths) / max(WIDTH, *lengths)
    counts = range(max(1, int(wanted / 1.5)), max(1, int(wanted * 1.5)) + 1)
    tried = [(rows, *deal(lengths, rows)) for rows in counts[:: max(1, len(counts) // 8)]]
    least = min(rows * width for rows, width, _ in tried)
    rows, width, places = min((one for one in tried if one[0] * one[1] <= LITTLE * least), key=lambda one: one[1])
    length = torch.tensor(lengths)
    start = torch.tensor([row * width + at for row, at in places])
    number = torch.arange(len(lengths)).repeat_interleave(length)
    position = torch.arange(len(number)) - (length.cumsum(0) - length).repeat_interleave(length)
    place = start.repeat_interleave(length) + position
    empty = torch.full((rows * width,), -1)
    return Layout(place, empty.scatter(0, place, number).view(rows, width), (empty + 1).scatter(0, place, position).view(rows, width))


def alike(lengths: Sequence[int], waste: float) -> list[list[int]]:
    """Groups of sequences of like length, as few as there can be with at most this share of padding in each; for what cannot be packed.

    >>> alike([5, 100, 98, 5, 4], waste=0.1)
    [[1, 2], [0, 3, 4]]
    """
    groups: list[list[int]] = []
    for which in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if groups:
            longer = [*groups[-1], which]
            if sum(lengths[at] for at in longer) >= (1 - waste) * lengths[longer[0]] * len(longer):
                groups[-1] = longer
                continue
        groups.append([which])
    return groups


def padding(mask: Tensor) -> float:
    """Share of padding in a batch.

    >>> padding(torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    0.25
    """
    return 1 - float(mask.float().mean())


def hidden_states(llm: PreTrainedModel, embeds: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states (B, L, D) of a causal LLM, packed; zero at padding.

    Args:
        llm: without its head; :func:`can_pack` says whether it may be packed, and :func:`longest` up to which length.
        embeds: (B, L, D).
        mask: (B, L), 1 for a real position, 0 for padding on the right.
    """
    real = mask.bool()
    rows = layout(mask.sum(1).tolist())
    place, number, position = (part.to(embeds.device) for part in rows)
    packed = embeds.new_zeros(number.numel(), embeds.shape[-1]).index_copy(0, place, embeds[real]).view(*number.shape, -1)
    causal = torch.ones(number.shape[1], number.shape[1], dtype=torch.bool, device=embeds.device).tril()
    sees = (number[:, None, :, None] == number[:, None, None, :]) & causal  # padding sees padding: no row without anything
    bias = torch.zeros_like(sees, dtype=embeds.dtype).masked_fill(~sees, torch.finfo(embeds.dtype).min)
    hidden: Tensor = llm(inputs_embeds=packed, attention_mask=bias, position_ids=position, use_cache=False).last_hidden_state
    return torch.zeros_like(embeds, dtype=hidden.dtype).masked_scatter(real[..., None], hidden.flatten(0, 1)[place])


def longest(llm: PreTrainedModel) -> float:
    """Tokens of the longest sequence that all layers of an LLM see as a whole; one mask for all layers holds up to here.

    Infinite, unless some layers attend within a sliding window or a chunk only.
    """
    spans = (getattr(llm.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((span for span in spans if span), default=math.inf)


def can_pack(llm: PreTrainedModel) -> bool:
    """Whether an LLM gives packed sequences what it gives them alone: not with learned positions, recurrent layers, two-way attention.

    Tried, where there are weights, on two short sequences: one that sees the other is about as far from itself as from anything else.
    """
    weight: Tensor = llm.get_input_embeddings().weight  # type: ignore[assignment]
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4], device=weight.device)
    if weight.is_meta:
        return False
    training = llm.training
    llm.train(mode=False)
    try:
        embeds = weight[torch.arange(18, device=weight.device).view(2, 9) % len(weight)].detach().to(llm.dtype)
        alone = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state * mask[..., None]
        packed = hidden_states(llm, embeds, mask)
    except Exception:
        return False
    finally:
        llm.train(training)
    rounding = 1e-4 if llm.dtype == torch.float32 else 2e-2
    return bool((packed - alone).norm() < rounding * alone.norm())
