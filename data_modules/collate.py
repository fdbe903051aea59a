"""Batches: what the loaders give to the model, and how they are made from records.

Pictures travel as positions in ``datamodule.pictures``; their patch features come from a cache. Pixels come along only where a model looks
at them anew at every step. B is the batch size.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from data_modules.pixels import PixelReader
    from data_modules.records import Triplet
    from data_modules.samplers import Draw


class TripletBatch(NamedTuple):
    """Training examples.

    Attributes:
        reference: (B,) int64, positions of the reference images in ``datamodule.pictures``.
        captions: B relative captions.
        target: (B,) int64, positions of the target images.
        content: (B,) int64, equal for targets with equal pixels (false negatives of each other).
        pixels: (n, 3, S, S) uint8, the n distinct pictures by ascending position; None where nobody looks at them.
    """

    reference: Tensor
    captions: list[str]
    target: Tensor
    content: Tensor
    pixels: Tensor | None = None


class PictureBatch(NamedTuple):
    """Gallery pictures to encode.

    Attributes:
        index: (B,) int64, positions in ``datamodule.gallery_pictures(split)``.
        picture: (B,) int64, positions in ``datamodule.pictures``.
        pixels: (B, 3, S, S) uint8; None where nobody looks at them.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    picture: Tensor
    pixels: Tensor | None = None


class QueryBatch(NamedTuple):
    """Evaluation queries to encode.

    Attributes:
        index: (B,) int64, positions in ``datamodule.distinct_queries(split)``.
        reference: (B,) int64, positions of the reference images in ``datamodule.pictures``.
        captions: B relative captions.
        pixels: (B, 3, S, S) uint8, the reference images; None where nobody looks at them.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    reference: Tensor
    captions: list[str]
    pixels: Tensor | None = None


def content_id(content: str) -> int:
    """A signed 64-bit number that is equal for equal ``Picture.content``, in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big", signed=True)


def distinct(reference: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pictures (n,) of a training batch by ascending position, and the place in them of each reference, then each target."""
    pictures, place = torch.cat([reference, target]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return pictures, place


class TripletCollate:
    """Makes a :class:`TripletBatch` of triplet numbers.

    Args:
        triplets: the training examples.
        picture_index: picture name -> position in ``datamodule.pictures``.
        content: (P,) int64, :func:`content_id` of every picture.
        pixels: reads pictures; None if nobody looks at them.
    """

    def __init__(
        self, triplets: Sequence[Triplet], picture_index: Mapping[str, int], content: Tensor, pixels: PixelReader | None = None
    ) -> None:
        self.triplets, self.picture_index, self.content, self.pixels = triplets, picture_index, content, pixels

    def __call__(self, draws: Sequence[Draw]) -> TripletBatch:
        """The batch of the triplets that were drawn."""
        chosen = [self.triplets[draw.number] for draw in draws]
        captions = [_say(triplet, draw.chance) for triplet, draw in zip(chosen, draws, strict=True)]
        target = torch.tensor([self.picture_index[triplet.target] for triplet in chosen])
        reference = torch.tensor([self.picture_index[triplet.reference] for triplet in chosen])
        pixels = None if self.pixels is None else self.pixels(distinct(reference, target)[0], draws[0].chance)
        return TripletBatch(reference, captions, target, self.content[target], pixels)


def _say(triplet: Triplet, chance: float) -> str:
    """One of the triplet's wordings, or its caption if it has none."""
    wordings = triplet.wordings or (triplet.caption,)
    return wordings[int(chance * len(wordings))]


class PictureCollate:
    """Makes a :class:`PictureBatch` of gallery positions.

    Args:
        pictures: (G,) int64, positions of the gallery's pictures in ``datamodule.pictures``.
        pixels: reads pictures; None if nobody looks at them.
    """

    def __init__(self, pictures: Tensor, pixels: PixelReader | None = None) -> None:
        self.pictures, self.pixels = pictures, pixels

    def __call__(self, numbers: Sequence[int]) -> PictureBatch:
        """The batch of these gallery positions."""
        index = torch.tensor(numbers)
        picture = self.pictures[index]
        return PictureBatch(index, picture, None if self.pixels is None else self.pixels(picture))


class QueryCollate:
    """Makes a :class:`QueryBatch` of query numbers.

    Args:
        queries: distinct pairs of reference and caption.
        picture_index: picture name -> position in ``datamodule.pictures``.
        pixels: reads pictures; None if nobody looks at them.
    """

    def __init__(self, queries: Sequence[tuple[str, str]], picture_index: Mapping[str, int], pixels: PixelReader | None = None) -> None:
        self.queries, self.picture_index, self.pixels = queries, picture_index, pixels
        self.by_length = sorted(range(len(queries)), key=lambda at: len(queries[at][1]))

    def __call__(self, numbers: Sequence[int]) -> QueryBatch:
        """The batch of the queries with these numbers, counted from the shortest caption on: little of it is padding."""
        places = [self.by_length[number] for number in numbers]
        chosen = [self.queries[place] for place in places]
        reference = torch.tensor([self.picture_index[name] for name, _ in chosen])
        pixels = None if self.pixels is None else self.pixels(reference)
        return QueryBatch(torch.tensor(places), reference, [caption for _, caption in chosen], pixels)
