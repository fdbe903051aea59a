"""The embedding table: one process, and real gloo processes with uneven and empty shares."""

import doctest

import pytest
import torch
from fakes.processes import start
from torch import distributed

from cir_lightning.retrieval import metrics, ranking
from cir_lightning.retrieval.figures import score
from cir_lightning.retrieval.metrics import EmbeddingTable
from cir_lightning.retrieval.ranking import rank
from data_modules.records import EvaluationSet, Query

SAMPLES = 13
WIDTH = 2
HITS = torch.tensor([[1.0, 0.0]] + [[0.0, 1.0]] * (SAMPLES - 1))  # only sample 0 finds its target


def figure(table):
    """R@1 of the table's rows as queries for the first of two pictures: 1 of 13."""
    queries = tuple(Query(f"q{i}", "none", "", ("right",)) for i in range(SAMPLES))
    evaluation = EvaluationSet("one hit", queries, ("right", "wrong"), remove_reference=False, recall_at=(1,))
    return score(rank(table, torch.eye(2), evaluation), evaluation)["R@1"]


def shares(world):
    """Who sees what: as DistributedSampler pads (samples repeat), all on the first process, and all on the last one."""
    padded = [i % SAMPLES for i in range(-(-SAMPLES // world) * world)]
    everything = list(range(SAMPLES))
    return {
        "padded": [padded[r::world] for r in range(world)],
        "first": [everything] + [[]] * (world - 1),
        "last": [[]] * (world - 1) + [everything],
    }


def feed(table, mine):
    for batch in torch.tensor(mine, dtype=torch.int64).split(4) if mine else ():
        table.update(batch, HITS[batch])


def work(rank_, folder):
    """One of three processes; the first one is also a world of one, the first two a world of two."""
    for world in range(rank_ + 1, 4):
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank_, world_size=world)
        table = EmbeddingTable(SAMPLES, WIDTH)
        results = {}
        for name, parts in shares(world).items():
            feed(table, parts[rank_])
            results[name] = table.compute()
            table.reset()
        torch.save(results, f"{folder}/{world}-{rank_}.pt")
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Tables of each (world size, rank)."""
    folder = tmp_path_factory.mktemp("worlds")
    start(work, 3, str(folder))
    return {(world, r): torch.load(folder / f"{world}-{r}.pt") for world in (1, 2, 3) for r in range(world)}


@pytest.mark.parametrize("share", ["padded", "first", "last"])
def test_same_table_on_any_number_of_processes(worlds, share):
    for where, tables in worlds.items():
        assert torch.equal(tables[share], HITS), where
        assert figure(tables[share]) == pytest.approx(100 / 13), where


def test_one_process_any_order_with_repetition():
    table = EmbeddingTable(SAMPLES, WIDTH)
    for batch in torch.tensor([12, 3, 5, 0, 0, *range(SAMPLES)]).split(5):
        table.update(batch, HITS[batch])
    assert torch.equal(table.compute(), HITS)


def test_keeps_float32_without_a_graph():
    table = EmbeddingTable(1, 2)
    table.update(torch.tensor([0]), torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True))
    assert table.compute().dtype == torch.float32
    assert not table.compute().requires_grad


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric EmbeddingTable was called before:UserWarning")
def test_missing_samples_are_counted():
    table = EmbeddingTable(5, 2)
    with pytest.raises(RuntimeError, match="5 of 5 embeddings are missing, the first one at index 0"):
        table.compute()
    table.update(torch.tensor([0, 3]), torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="3 of 5 embeddings are missing, the first one at index 1: every sample"):
        table.compute()


def test_reset_forgets_and_leaves_typed_empty_states():
    table = EmbeddingTable(2, 3)
    table.update(torch.tensor([0, 1]), torch.ones(2, 3))
    table.reset()
    assert [(part.shape, part.dtype) for part in (*table.index, *table.embedding)] == [((0,), torch.int64), ((0, 3), torch.float32)]
    table.update(torch.tensor([1]), torch.ones(1, 3))
    with pytest.raises(RuntimeError, match="1 of 2 embeddings"):
        table.compute()


@pytest.mark.parametrize("module", [metrics, ranking])
def test_examples(module):
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
