"""The gradient cache against the plain step, on one process and on two."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from fakes.build import random_features, tiny_encoder, tiny_module
from fakes.processes import start
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import cir_lightning.chunks
from cir_lightning.backbones.lora import LoRA
from cir_lightning.chunks import WithinMemory
from cir_lightning.prompt_pool import PromptPool
from data_modules.collate import TripletBatch
from data_modules.errors import UserError

REFERENCE, TARGET = torch.tensor([0, 1, 2, 3, 4, 0, 1, 5]), torch.tensor([6, 7, 6, 0, 2, 8, 9, 9])
CAPTIONS = ["but red", "as a circle in blue", "red", "in a green", "as a bar", "as a circle but red", "pink", "in brown as a cross"]


def whole():
    return TripletBatch(REFERENCE, CAPTIONS, TARGET, TARGET)


def half(number):
    own = slice(4 * number, 4 * number + 4)
    return TripletBatch(REFERENCE[own], CAPTIONS[own], TARGET[own], TARGET[own])


class Step(nn.Module):
    """The training step of the tiny module, which has a forward for DDP."""

    def __init__(self, chunk, dropout=0.0):
        super().__init__()
        encoder = tiny_encoder(lora=LoRA(4, dropout=dropout), soft_prompt=PromptPool(6, 2, chosen=2, pull=0.5), residual=True)
        self.module = tiny_module(encoder=encoder, chunk=chunk)
        self.module.configure_model()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.module.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        self.module.features, self.module.feature_row, self.module.vision = random_features(10), torch.arange(10), None
        self.module.log_dict = self.module.log = lambda *_, **__: None

    def forward(self, batch):
        """The loss."""
        return self.module.training_step(batch, 0)


def step(model, batch):
    """Loss and gradients by parameter name."""
    torch.manual_seed(1)  # of dropout
    loss = model(batch)
    loss.backward()
    return loss.detach(), {name.rpartition("module.")[2]: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_equal(mine, plain):
    torch.testing.assert_close(mine[0], plain[0], atol=1e-6, rtol=0)
    assert mine[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        scale = gradient.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(mine[1][name] / scale, gradient / scale, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_loss_and_gradients_are_those_of_the_plain_step(chunk):
    assert_equal(step(Step(chunk), whole()), step(Step(None), whole()))


def test_dropout_is_replayed(monkeypatch):
    cached = step(Step(3, dropout=0.5), whole())
    monkeypatch.setattr(cir_lightning.chunks, "checkpoint", lambda run, part, use_reentrant: run(part))
    kept = step(Step(3, dropout=0.5), whole())
    assert_equal(cached, kept)
    assert (step(Step(None), whole())[0] - kept[0]).abs() > 1e-3


def test_activations_of_one_chunk_at_a_time_are_kept():
    kept = []
    for chunk in (None, 2):
        held = SimpleNamespace(now=0)

        def pack(tensor, held=held):
            held.now += tensor.numel() * tensor.element_size()
            return tensor

        model = Step(chunk)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(whole())
        kept.append(held.now)
    assert kept[1] < 0.1 * kept[0]


def worker(number, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    try:
        torch.save(step(DistributedDataParallel(Step(3)), half(number)), f"{folder}/{number}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    start(worker, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    plain = step(Step(None), whole())
    assert_equal(((first[0] + second[0]) / 2, first[1]), plain)
    assert_equal(((first[0] + second[0]) / 2, second[1]), plain)


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"model\.chunk=0 is not possible; set it to 1 or more, or to null for whole batches"):
        tiny_module(chunk=0)


def test_evaluation_finds_the_pieces_that_memory_holds(capsys):
    asked = []

    def encode(some):
        asked.append(some.stop - some.start)
        if asked[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.arange(20.0)[some, None]

    within = WithinMemory()
    assert torch.equal(within(encode, 20)[:, 0], torch.arange(20.0))
    assert asked == [20, 10, 5] + [2] * 10
    assert "out of memory with 20 at once: evaluation goes on with 10; set data.eval_batch_size to that" in capsys.readouterr().out
    assert torch.equal(within(encode, 5)[:, 0], torch.arange(5.0))  # remembers
    assert asked[13:] == [2, 2, 1]


def test_one_that_does_not_fit_stops_evaluation():
    def encode(some):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        WithinMemory()(encode, 4)
