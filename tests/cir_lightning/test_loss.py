"""InfoNCE in one process: the formula, the mask, the temperature."""

import doctest

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import cir_lightning.loss
from cir_lightning.loss import InfoNCE
from data_modules.errors import UserError

B, E = 6, 8
DIRECTIONS = ["query_to_target", "both"]


def vectors(seed):
    return F.normalize(torch.randn(B, E, generator=torch.Generator().manual_seed(seed)), dim=-1)


def numpy_loss(query, target, ids, direction, tau):
    """The docstring's formula, row by row."""

    def one_way(rows, columns):
        terms = []
        for i in range(len(ids)):
            kept = [j for j in range(len(ids)) if j == i or ids[j] != ids[i]]
            scores = np.exp(columns[kept] @ rows[i] / tau)
            terms.append(-np.log(scores[kept.index(i)] / scores.sum()))
        return np.mean(terms)

    query, target = query.double().numpy(), target.double().numpy()
    forth = one_way(query, target)
    return forth if direction == "query_to_target" else (forth + one_way(target, query)) / 2


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [3, 1, 3, 2, 1, 3]])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_matches_the_formula(direction, ids):
    query, target = vectors(1), vectors(2)
    loss = InfoNCE(direction, 0.07)(query, target, torch.tensor(ids))
    assert loss.item() == pytest.approx(numpy_loss(query, target, ids, direction, 0.07), rel=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_same_picture_is_no_negative(direction):
    """Two queries with one target picture: masked, the other pair does not push; if all are one picture there is nothing to learn."""
    query, target = vectors(1).requires_grad_(), vectors(2)
    loss = InfoNCE(direction)(query, target, torch.full((B,), 9))
    loss.backward()
    assert loss == 0
    assert (query.grad == 0).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_everything_gets_a_gradient(direction):
    loss, query, target = InfoNCE(direction), vectors(1).requires_grad_(), vectors(2).requires_grad_()
    loss(query, target, torch.tensor([0, 1, 2, 3, 4, 4])).backward()
    for x in (query, target, *loss.parameters()):
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() > 1e-5


def test_learned_temperature_stays_above_its_bound_and_can_rise_again():
    loss = InfoNCE(temperature=0.05, min_temperature=0.01)
    assert loss.temperature.item() == pytest.approx(0.05)

    def train(query, target):
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.2)
        for _ in range(50):
            optimizer.zero_grad()
            loss(query, target, torch.arange(B)).backward()
            optimizer.step()
        return loss.temperature.item()

    sharp = train(vectors(2), vectors(2))  # all right: a small tau is better
    assert 0.01 < sharp < 0.02
    assert train(vectors(2), -vectors(2)) > 0.05  # all wrong: a large one is


def test_fixed_temperature_is_not_trained_and_has_no_bound():
    loss = InfoNCE(temperature=0.005, learn_temperature=False)
    assert loss.temperature.item() == pytest.approx(0.005)
    assert [p for p in loss.parameters() if p.requires_grad] == []


@pytest.mark.parametrize(("tau", "low"), [(0.01, 0.01), (0.005, 0.01), (0.0, 0.0), (0.05, -0.1)])
def test_impossible_temperatures_are_refused(tau, low):
    with pytest.raises(
        UserError, match=rf"temperature={tau} with min_temperature={low}, .*set 0 <= `loss.min_temperature` < `loss.temperature`"
    ):
        InfoNCE(temperature=tau, min_temperature=low)


def test_a_batch_of_one_is_refused():
    with pytest.raises(UserError, match=r"batch of 1 has no in-batch negatives; set `data.batch_size` to 2 or more"):
        InfoNCE()(vectors(1)[:1], vectors(2)[:1], torch.tensor([0]))


def test_autocast_does_not_touch_the_logits():
    loss, args = InfoNCE(), (vectors(1), vectors(2), torch.arange(B))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*args)
    assert torch.equal(value, loss(*args))


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(cir_lightning.loss, extraglobs={"torch": torch})
    assert (result.attempted, result.failed) == (3, 0)


def test_targets_of_earlier_batches_are_negatives_without_gradient():
    """Against the formula in numpy; the second target of the first batch is the first one's picture again, so it is no negative there."""
    generator = torch.Generator().manual_seed(0)
    batches = [[F.normalize(torch.randn(3, 4, generator=generator), dim=1).requires_grad_() for _ in range(2)] for _ in range(3)]
    ids = [torch.tensor(row) for row in ([1, 2, 3], [4, 5, 2], [2, 6, 7])]
    loss = InfoNCE(temperature=0.5, learn_temperature=False, memory=4)
    got = [loss(query, target, one) for (query, target), one in zip(batches, ids, strict=True)]

    past = torch.cat([batches[1][1], batches[0][1][:1]]).detach()  # the four newest: the second batch, one of the first
    past_id = torch.tensor([4, 5, 2, 1])
    query, target = batches[2]
    logits = (query @ torch.cat([target, past]).T / 0.5).detach().numpy()
    columns = torch.cat([ids[2], past_id]).numpy()
    rows = []
    for i, row in enumerate(logits):
        kept = [j for j in range(len(row)) if j == i or columns[j] != ids[2][i]]
        rows.append(np.log(np.exp(row[kept] - row[i]).sum()))
    assert got[2].item() == pytest.approx(np.mean(rows), abs=1e-6)
    got[2].backward()
    assert batches[2][1].grad is not None
    assert batches[1][1].grad is None


def test_the_memory_is_filled_by_training_alone_and_is_in_no_checkpoint():
    loss = InfoNCE(memory=4).eval()
    loss(torch.eye(2), torch.eye(2), torch.tensor([1, 2]))
    assert loss.past is None
    loss.train()(torch.eye(2), torch.eye(2), torch.tensor([1, 2]))
    assert loss.past.shape == (2, 2)
    assert set(loss.state_dict()) == {"log_excess"}


def test_a_negative_memory_is_refused():
    with pytest.raises(UserError, match=r"loss: memory=-1 is below 0; set `loss\.memory` to 0 or more"):
        InfoNCE(memory=-1)


@pytest.mark.parametrize("direction", ["query_to_target", "both"])
def test_a_part_of_the_rows_at_a_time_gives_the_same(direction, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, target = (F.normalize(torch.randn(7, 4, generator=generator), dim=1) for _ in range(2))
    found = []
    for rows in (100, 3):
        monkeypatch.setattr(cir_lightning.loss, "ROWS", rows)
        loss, pair = InfoNCE(direction, 0.1, memory=5), [query.clone().requires_grad_(), target.clone().requires_grad_()]
        loss(*pair, torch.arange(7))  # fills the memory
        value = loss(*pair, torch.tensor([1, 2, 3, 1, 4, 5, 2]))
        value.backward()
        found.append([value.detach(), *(one.grad for one in pair), loss.log_excess.grad])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
