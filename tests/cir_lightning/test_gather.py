"""Two real processes give the loss and the gradients of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from fakes.processes import start
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cir_lightning.distributed import gather, gather_ids, rank, world_size
from cir_lightning.loss import InfoNCE

W, B, IN, E = 2, 4, 10, 6
DIRECTIONS = ["query_to_target", "both"]
IDS = torch.tensor([0, 1, 2, 3, 4, 1, 5, 0])  # pictures 0 and 1 are targets on both processes


class Toy(nn.Module):
    """A shared encoder for queries and targets, and the loss: what the training step does."""

    def __init__(self, direction):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(IN, 12), nn.Tanh(), nn.Linear(12, E))
        self.loss = InfoNCE(direction, 0.1)

    def forward(self, query, target, ids):
        """Loss of a batch."""
        q, t = (F.normalize(self.encoder(x), dim=-1) for x in (query, target))
        return self.loss(q, t, ids)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(W * B, IN, generator=generator), torch.randn(W * B, IN, generator=generator), IDS


def step(model, *args):
    """Loss and gradients by parameter name."""
    loss = model(*args)
    loss.backward()
    return loss.detach(), {n.removeprefix("module."): p.grad.clone() for n, p in model.named_parameters()}


def worker(number, folder, world=W):
    """One process: what it gathers, and a DDP step per direction; saved as ``{number}.pt``."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=world)
    try:
        own = slice(number * B, (number + 1) * B)
        rows = batch()[0][own]
        out = {"rows": gather(rows.T).reshape(world, IN, B), "ids": gather_ids(IDS[own]), "place": (rank(), world_size())}
        for direction in DIRECTIONS:
            model = DistributedDataParallel(Toy(direction))
            out[direction] = step(model, *(x[own] for x in batch()))
        one = [F.normalize(x[number : number + 1], dim=-1) for x in batch()[:2]]
        out["one_row_each"] = InfoNCE(temperature=0.1)(*one, IDS[number : number + 1]).detach()
        torch.save(out, f"{folder}/{number}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    start(worker, W, str(folder))
    return [torch.load(folder / f"{number}.pt") for number in range(W)]


def test_rows_and_ids_arrive_in_the_order_of_the_ranks(processes):
    for number, out in enumerate(processes):
        assert out["place"] == (number, W)
        assert torch.equal(out["ids"], IDS)
        assert torch.equal(out["rows"].transpose(1, 2).flatten(0, 1), batch()[0])  # also from a transposed, non-contiguous view


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_two_processes_equal_one(processes, direction):
    loss, gradients = step(Toy(direction), *batch())
    torch.testing.assert_close(torch.stack([out[direction][0] for out in processes]).mean(), loss, atol=1e-6, rtol=0)
    for out in processes:
        assert out[direction][1].keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert gradient.abs().max() > 1e-4
            torch.testing.assert_close(out[direction][1][name], gradient, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_duplicates_across_processes_are_masked(processes):
    """Were they not, the two-process loss would be the one with all ids different."""
    unmasked = step(Toy("both"), *batch()[:2], torch.arange(W * B))[0]
    assert (torch.stack([out["both"][0] for out in processes]).mean() - unmasked).abs() > 1e-2


def test_one_row_per_process_is_a_batch_of_two(processes):
    query, target, _ = batch()
    whole = InfoNCE(temperature=0.1)(F.normalize(query[:2], dim=-1), F.normalize(target[:2], dim=-1), IDS[:2])
    torch.testing.assert_close(torch.stack([out["one_row_each"] for out in processes]).mean(), whole.detach(), atol=1e-6, rtol=0)


def test_without_a_process_group_gather_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x
    assert gather_ids(IDS) is IDS
    assert (rank(), world_size()) == (0, 1)


def test_a_process_group_of_one_changes_nothing(tmp_path):
    expected = step(Toy("both"), *batch())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        loss, gradients = step(DistributedDataParallel(Toy("both")), *batch())
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close((loss, gradients), expected, atol=1e-7, rtol=0)
