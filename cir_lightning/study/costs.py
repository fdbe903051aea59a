"""What an arm of a study costs, by the arithmetic of ``cir estimate``: the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cir_lightning.estimate import Pass, llm_flops, sight_cost
from cir_lightning.estimate_report import build_skeleton, llm_of, sequence_lengths

if TYPE_CHECKING:
    from cir_lightning.encoder import Encoder

WORDS = 12  # of the caption that is counted


def costs_of(encoder: Encoder) -> dict[str, float]:
    """Trained parameters; tokens and GFLOP of one query and of one gallery picture, whose patch features are cached.

    Args:
        encoder: not built yet.
    """
    built = build_skeleton(encoder)
    costs = {"trained parameters": float(sum(p.numel() for p in built.parameters() if p.requires_grad))}
    if (llm := llm_of(built)) is None:
        return costs
    seeing = sight_cost(built).flops
    for side, length in sequence_lengths(built, WORDS).items():
        what = "query" if side == "query" else "picture"
        costs[f"tokens per {what}"] = float(length)
        costs[f"GFLOP per {what}"] = (llm_flops(llm, [Pass(1, length)], checkpointing=False).forward + seeing) / 1e9
    return costs
