"""Which examples make a batch, on any number of processes.

Lightning must run with ``use_distributed_sampler=False``: these samplers deal the batches themselves. B is the batch size of one
process, W the number of processes.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from torch.utils.data import Sampler

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RUN = 8  # triplets of one group that come together


class Draw(NamedTuple):
    """One item of a training batch.

    Attributes:
        number: of the triplet.
        chance: 0 up to, but not including, 1; chooses among the triplet's wordings.
    """

    number: int
    chance: float


class GroupedBatchSampler(Sampler[list[Draw]]):
    """Training batches with hard negatives: a share of each batch is runs of triplets of one group, the rest is random.

    An epoch is a sequence of global batches of B * W triplets, drawn from (seed, epoch) alone. Each process takes its slice of each,
    so that one process with a batch size of 2 B and two with B see the same global batches. No triplet comes twice in an epoch; the
    last incomplete global batch is dropped. When the groups cannot fill all runs, random triplets take their place.

    Args:
        groups: group of every triplet; the empty string means none.
        batch_size: triplets per batch of one process, B.
        same_group: share of a global batch that is drawn in runs of ``RUN`` triplets of one group, 0 to 1.
        seed: of all epochs.
        rank: this process, 0 to W - 1.
        world: number of processes, W.

    Attributes:
        seen: how many batches of the epoch a resumed run has already seen; asked when an iteration begins, which leaves them out.

    Raises:
        UserError: there are fewer triplets than one global batch takes.
    """

    def __init__(
        self, groups: Sequence[str], batch_size: int, *, same_group: float = 0.5, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.groups, self.batch_size, self.seed, self.rank, self.world = groups, batch_size, seed, rank, world
        self.global_size = batch_size * world
        self.runs = int(self.global_size * same_group) // RUN
        self.epoch = 0
        self.seen: Callable[[], int] = lambda: 0
        if len(groups) < self.global_size:
            raise UserError(
                f"{len(groups)} training triplets do not fill one batch of {self.global_size} (data.batch_size {batch_size} x {world} "
                "processes); set a smaller --data.batch_size"
            )

    @property
    def sampler(self) -> GroupedBatchSampler:
        """Itself: Lightning calls ``set_epoch`` of ``dataloader.batch_sampler.sampler``, not of the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw the next iteration for this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch, equal on every process."""
        return len(self.groups) // self.global_size

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches of this process: B draws each."""
        for batch in itertools.islice(self._global_batches(), self.seen() % len(self), None):
            yield batch[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def _global_batches(self) -> Iterator[list[Draw]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        chances = random.Random(f"{self.seed}/{self.epoch}/wordings")
        runs = self._draw_runs(rng)
        taken = {number for run in runs for number in run}
        rest = [number for number in range(len(self.groups)) if number not in taken]
        rng.shuffle(rest)
        for batch in range(len(self)):
            blocks = runs[batch :: len(self)]
            while (missing := self.global_size - sum(map(len, blocks))) > 0:
                blocks.append([rest.pop() for _ in range(min(RUN, missing))])
            rng.shuffle(blocks)  # else the first process would get all the hard negatives
            yield [Draw(number, chances.random()) for block in blocks for number in block]

    def _draw_runs(self, rng: random.Random) -> list[list[int]]:
        """At most as many disjoint runs as the epoch has places for, large groups in proportion."""
        members: defaultdict[str, list[int]] = defaultdict(list)
        for number, group in enumerate(self.groups):
            if group:
                members[group].append(number)
        runs = []
        for group in sorted(members):
            rng.shuffle(members[group])
            runs += [members[group][at : at + RUN] for at in range(0, len(members[group]) - RUN + 1, RUN)]
        rng.shuffle(runs)
        return runs[: self.runs * len(self)]


class ShardedBatchSampler(Sampler[list[int]]):
    """Evaluation batches whose content does not depend on the number of processes, so that results are equal to the last bit.

    The fixed batches ``[b * B, (b + 1) * B)`` are dealt to the processes in turn. A process that would get one less than others gets batch
    0 again: encoding something twice is harmless, and where processes share a model's layers they must all run it equally often.

    Args:
        length: number of items, at least 1.
        batch_size: items per batch, B.
        rank: this process, 0 to W - 1.
        world: number of processes, W.
    """

    def __init__(self, length: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        starts = range(0, length, batch_size)
        most = -(-len(starts) // world)
        own = [*starts[rank::world], starts[0]][:most]
        self.batches = [list(range(at, min(at + batch_size, length))) for at in own]

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of this process: at most B item numbers each."""
        return iter(self.batches)
