"""Honest yardsticks: what the frozen parts reach without the model, beside which every result is printed.

Shapes: P pictures, R queries, Dv patch feature width, Ds caption feature width, T training triplets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cir_lightning.module import CIRModule
    from data_modules.records import EvaluationSet

PICTURES = 256  # whose features are in memory at once
RIDGE = 0.01  # share of the inputs' variance that is added to it; fixed beforehand, not tuned


def ridge(inputs: Tensor, outputs: Tensor, strength: float = RIDGE) -> Tensor:
    """Linear map that minimises |X W - Y|^2 + strength * T * mean(X^2) * |W|^2, with a column of ones for the constant.

    Args:
        inputs: X (T, Ds) float.
        outputs: Y (T, Dv) float.
        strength: weight of the penalty.

    Returns:
        W (Ds + 1, Dv) float32.
    """
    x = with_constant(inputs).double()
    penalty = strength * len(x) * inputs.double().square().mean() * torch.eye(x.shape[1], dtype=torch.double, device=x.device)
    solution: Tensor = torch.linalg.solve(x.T @ x + penalty, x.T @ outputs.double())
    return solution.float()


def with_constant(inputs: Tensor) -> Tensor:
    """Inputs (T, Ds) with a last column of ones."""
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)


class Yardsticks:
    """Vectors of the untrained methods on the module's frozen features.

    Pictures are their mean standardised patch features. As the frozen tower and the frozen words share no space, the caption's
    place among pictures is a ridge regression from caption features to target features on the training triplets, in closed form.
    """

    def __init__(self, module: CIRModule) -> None:
        self.module, self.data = module, module.data
        parts = (module.features[at : at + PICTURES].to(module.device) for at in range(0, len(module.features), PICTURES))
        self.pooled: Tensor = torch.cat([module.encoder.standardise(part).mean(1) for part in parts])
        triplets = self.data.triplets
        self.map = None  # a benchmark without training triplets says nothing of how words look
        if triplets:
            self.map = ridge(self._captions([t.caption for t in triplets]), self._pictures([t.target for t in triplets]))

    def rank_vectors(self, evaluation: EvaluationSet) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Method name, query vectors (R, Dv) and gallery vectors (P, Dv) of each yardstick."""
        gallery = F.normalize(self._pictures(evaluation.gallery), dim=-1)
        image = F.normalize(self._pictures([q.reference for q in evaluation.queries]), dim=-1)
        draw = torch.Generator().manual_seed(self.data.seed)
        noise = F.normalize(torch.randn(image.shape, generator=draw), dim=-1)
        chance = F.normalize(torch.randn(gallery.shape, generator=draw), dim=-1)
        yield "random", noise, chance
        yield "reference image only", image, gallery
        if self.map is not None:
            words = with_constant(self._captions([q.caption for q in evaluation.queries]))
            caption = F.normalize(words @ self.map, dim=-1)
            yield "caption only", caption, gallery
            yield "sum of both", image + caption, gallery

    def _pictures(self, names: Sequence[str]) -> Tensor:
        return self.pooled[self.module.feature_rows(torch.tensor([self.data.picture_index[name] for name in names]))]

    @torch.no_grad()
    def _captions(self, captions: Sequence[str]) -> Tensor:
        chunks = [self.module.encoder.caption_features(captions[i : i + 256]) for i in range(0, len(captions), 256)]
        return torch.cat(chunks).float()
