from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from data_modules.errors import UserError
from data_modules.samplers import RUN, GroupedBatchSampler, ShardedBatchSampler

GROUPS = [f"group {number % 13}" for number in range(1000)]


def batches(groups: list[str], size: int, epoch: int = 0, rank: int = 0, world: int = 1, **options: float) -> list[list[int]]:
    sampler = GroupedBatchSampler(groups, size, rank=rank, world=world, **options)
    sampler.set_epoch(epoch)
    return [[draw.number for draw in batch] for batch in sampler]


def test_every_triplet_at_most_once_and_every_batch_full():
    out = batches(GROUPS, 64)
    assert [len(batch) for batch in out] == [64] * (1000 // 64)
    assert max(Counter(chain(*out)).values()) == 1
    assert set(chain(*out)) <= set(range(1000))


@pytest.mark.parametrize(("size", "world"), [(32, 2), (16, 4), (20, 3), (7, 5)])
def test_processes_see_slices_of_what_one_process_sees(size: int, world: int):
    alone = batches(GROUPS, size * world)
    ranks = [batches(GROUPS, size, rank=rank, world=world) for rank in range(world)]
    assert alone == [list(chain(*slices)) for slices in zip(*ranks, strict=True)]


def test_epochs_differ_and_repeat():
    assert batches(GROUPS, 64, epoch=0) != batches(GROUPS, 64, epoch=1)
    assert batches(GROUPS, 64, epoch=3) == batches(GROUPS, 64, epoch=3)


def test_a_resumed_epoch_leaves_out_what_was_seen():
    sampler = GroupedBatchSampler(GROUPS, 64, seed=3)
    whole = list(sampler)
    sampler.seen = lambda: 5
    assert list(sampler) == whole[5:]


def test_the_wording_is_drawn_anew_in_every_epoch_and_alike_on_any_number_of_processes():
    sampler = GroupedBatchSampler(GROUPS, 64, seed=3)
    first = {draw.number: draw.chance for draw in chain(*sampler)}
    halves = [GroupedBatchSampler(GROUPS, 32, seed=3, rank=rank, world=2) for rank in (0, 1)]
    assert {draw.number: draw.chance for half in halves for draw in chain(*half)} == first
    sampler.set_epoch(1)
    assert all(first.get(draw.number) != draw.chance for draw in chain(*sampler))
    assert 0.45 < sum(first.values()) / len(first) < 0.55


def test_seeds_differ():
    assert batches(GROUPS, 64, seed=0) != batches(GROUPS, 64, seed=1)


def test_share_of_hard_negatives():
    groups = [f"group {number // 24}" for number in range(4800)]  # so many groups that chance hardly brings eight together

    def together(same_group: float) -> float:
        out = batches(groups, 64, same_group=same_group)
        return sum(sum(n for n in Counter(groups[i] for i in batch).values() if n >= RUN) for batch in out) / (64 * len(out))

    assert together(0.0) == 0
    assert together(0.5) == pytest.approx(0.5, abs=0.02)
    assert together(1.0) == 1.0


def test_small_groups_and_no_groups_leave_full_batches():
    for groups in ([str(number) for number in range(100)], [""] * 100, ["a"] * 9 + [""] * 91):
        out = batches(groups, 10, same_group=1.0)
        assert len(out) == 10
        assert sorted(chain(*out)) == list(range(100))


def test_hard_negatives_reach_every_process():
    groups = [f"group {number // 20}" for number in range(4000)]
    for rank in (0, 1):
        out = batches(groups, 32, rank=rank, world=2)
        share = sum(max(Counter(groups[i] for i in batch).values()) >= RUN for batch in out) / len(out)
        assert share > 0.5


def test_too_few_triplets_name_the_remedy():
    with pytest.raises(UserError, match=r"20 training triplets do not fill one batch of 32 \(data.batch_size 16 x 2 processes\)"):
        GroupedBatchSampler([""] * 20, 16, world=2)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 9])
def test_sharding_covers_all_with_the_same_batches(world: int):
    alone = list(ShardedBatchSampler(50, 8))
    assert list(chain(*alone)) == list(range(50))
    ranks = [list(ShardedBatchSampler(50, 8, rank=rank, world=world)) for rank in range(world)]
    assert {tuple(batch) for batch in chain(*ranks)} == {tuple(batch) for batch in alone}
    assert {len(rank) for rank in ranks} == {-(-len(alone) // world)}  # as many on every process,
    again = [batch for number, rank in enumerate(ranks) for batch in rank[len(alone[number::world]) :]]
    assert all(batch == alone[0] for batch in again)  # the first one again where there are too few


def test_lengths_are_told():
    assert len(GroupedBatchSampler(GROUPS, 30, world=2)) == len(batches(GROUPS, 30, world=2)) == 16
    assert len(ShardedBatchSampler(50, 8, rank=1, world=2)) == 4
