"""Pooling: the last hidden states of an LLM or a text encoder -> one vector per sequence, whichever side the padding is on.

Shapes: B batch, L sequence, D LLM width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["weighted_mean", "mean", "last", "eos", "cls"]


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Average the hidden states over the real positions.

    Let i = 1..n number the real positions of a sequence, in order. Their weights, before they are divided by their sum, are:

    * ``weighted_mean``: w_i = i. A causal LLM's later positions have read more. The paper's choice.
    * ``mean``: w_i = 1.
    * ``last``: w_n = 1, all others 0.
    * ``eos``: as ``last``; how text encoders are pooled whose sequences end with a token made for it (CLIP).
    * ``cls``: w_1 = 1, all others 0; likewise where they begin with one (BERT).

    Args:
        hidden: float (B, L, D), any precision; summed in float32.
        mask: long or bool (B, L), 1 for a real position, 0 for padding; at least one real position per row.
        how: which weights.

    Returns:
        float32 (B, D).

    Source: SGPT (arXiv 2202.08904), equation 2; compared in CIR-LVLM (arXiv 2412.11087), ablation of the pooling.
    """
    real = mask.long()
    position = real.cumsum(1) * real
    if how == "weighted_mean":
        weights = position
    elif how == "mean":
        weights = real
    elif how == "cls":
        weights = (position == 1).long()
    else:
        weights = (position == position.amax(1, keepdim=True)).long()
    share = weights.float() / weights.sum(1, keepdim=True)
    return (hidden.float() * share[..., None]).sum(1)  # not a matrix product: autocast would make that bfloat16
