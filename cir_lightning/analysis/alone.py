"""What the reference image alone, and the caption alone, would find: a query's result is held against both.

Shapes: Nq queries, G gallery pictures, E embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from cir_lightning.retrieval.ranking import Ranking, rank
from data_modules.pixels import PixelReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from cir_lightning.module import CIRModule
    from data_modules.base import Split
    from data_modules.records import EvaluationSet

GREY = 128  # of all channels of the plain picture


class Alone(NamedTuple):
    """Rankings by one half of the queries, with the reference removed.

    Attributes:
        reference: by the reference image's own embedding as a target: its nearest neighbours.
        caption: by the caption with a plain grey picture in place of the reference image.
        query: by both, for comparison.
    """

    reference: Ranking
    caption: Ranking
    query: Ranking


class HalfQueries:
    """Encodes the halves of the queries of a split that was just evaluated; each distinct picture and caption once.

    Args:
        module: whose tables of embeddings are full.
        split: that they are of.
    """

    def __init__(self, module: CIRModule, split: Split) -> None:
        self.module, self.data = module, module.data
        names = self.data.gallery_pictures(split)
        self.table: Tensor = module.tables[0].compute()
        self.place = {name: at for at, name in enumerate(names)}
        self.queries = self.data.distinct_queries(split)
        self.query_table: Tensor = module.tables[1].compute()
        self.captions = {caption: at for at, caption in enumerate(dict.fromkeys(caption for _, caption in self.queries))}
        outside = [name for name in dict.fromkeys(name for name, _ in self.queries) if name not in self.place]
        with torch.inference_mode(), module.trainer.precision_plugin.forward_context():
            module.eval()
            if outside:
                self.place |= {name: len(names) + at for at, name in enumerate(outside)}
                self.table = torch.cat([self.table, self._in_batches(self._pictures, outside)])
            self.caption_table = self._in_batches(self._captions, list(self.captions))

    def rank(self, evaluation: EvaluationSet) -> Alone:
        """Rank a set's gallery by both halves of each query; the reference is removed in any case, as it is nearest to itself."""
        evaluation = replace(evaluation, remove_reference=True, recall_at=(), subset_recall_at=(), map_at=())
        gallery = self._rows(evaluation.gallery)
        captions = torch.tensor([self.captions[query.caption] for query in evaluation.queries])
        both = torch.tensor([self.queries[query.reference, query.caption] for query in evaluation.queries])
        vectors = (
            self._rows([query.reference for query in evaluation.queries]),
            self.caption_table[captions.to(self.table.device)],
            self.query_table[both.to(self.table.device)],
        )
        return Alone(*(rank(some, gallery, evaluation, top=1) for some in vectors))

    def _rows(self, names: Sequence[str]) -> Tensor:
        return self.table[torch.tensor([self.place[name] for name in names], device=self.table.device)]

    def _in_batches(self, encode: Callable[[list[str]], Tensor], items: list[str]) -> Tensor:
        order = sorted(range(len(items)), key=lambda at: len(items[at]))  # like lengths, little padding
        size = self.data.eval_batch_size

        def part(start: int) -> Tensor:
            some = [items[at] for at in order[start : start + size]]
            return self.module.within_memory(lambda places: encode(some[places]).float(), len(some))

        table = torch.cat([part(start) for start in range(0, len(items), size)])
        return table[torch.tensor(order).argsort().to(table.device)]

    def _pictures(self, names: list[str]) -> Tensor:
        positions = torch.tensor([self.data.picture_index[name] for name in names])
        tower = self.module.encoder.tower
        pixels = PixelReader(self.data.pictures, tower.image_size, self.data.transform)(positions) if tower.trained else None
        return self.module.encoder.encode_target(self.module.see(positions, None if pixels is None else pixels.to(self.module.device)))

    def _captions(self, captions: list[str]) -> Tensor:
        side = self.module.encoder.tower.image_size
        plain = torch.full((1, 3, side, side), GREY, dtype=torch.uint8, device=self.module.device)
        sight = self.module.encoder.look(plain).at(torch.zeros(len(captions), dtype=torch.int64, device=self.module.device))
        return self.module.encoder.encode_query(sight, captions)


def rank_alone(module: CIRModule, split: Split) -> Iterator[tuple[str, Alone]]:
    """Name of each evaluation set of a split that was just evaluated -> what the halves of its queries find. Alike on every process."""
    halves = HalfQueries(module, split)
    for name, (evaluation, _) in module.rankings.items():
        yield name, halves.rank(evaluation)
