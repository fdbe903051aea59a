"""What two processes must have in common, what must differ between them, and a batch that is no number on one of them."""

import math
import os
import socket

import pytest
import torch
from fakes.build import tiny_encoder, tiny_module, tiny_trainer
from fakes.processes import start
from fakes.tiny import TinyCIR
from lightning.pytorch import Callback

from cir_lightning.connector import Resampler
from cir_lightning.guards import Guards
from cir_lightning.loss import InfoNCE

BAD = 2


class Watch(Callback):
    """Spoils the queries of process 1 in one step; keeps weights, captions and the random numbers of every step."""

    def __init__(self):
        self.weights, self.captions, self.draws = [], [], []

    def on_train_start(self, trainer, pl_module):
        """Keep what the weights were at first, and look into every encoding of queries."""
        self.weights.append(flat(pl_module))
        encode = pl_module.encoder.encode_query

        def watched(sight, captions):
            state = torch.get_rng_state()
            self.draws.append(torch.rand(3))
            torch.set_rng_state(state)
            spoilt = trainer.global_rank == 1 and len(self.draws) == BAD + 1
            return encode(sight, captions) * (math.nan if spoilt else 1.0)

        pl_module.encoder.encode_query = watched

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Keep the captions."""
        self.captions.append(list(batch.captions))

    def on_train_batch_end(self, trainer, pl_module, *_):
        """Keep the weights."""
        self.weights.append(flat(pl_module))


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


def work(rank, port, folder):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()}
    watch, guards = Watch(), Guards("skip")
    module = tiny_module(encoder=tiny_encoder(connector=Resampler(4, 32, depth=1, heads=4, dropout=0.2)))
    module.loss = InfoNCE(temperature=0.1, memory=40)
    data = TinyCIR(str(folder), batch_size=12)
    trainer = tiny_trainer(folder, devices=2, strategy="ddp", max_steps=5, limit_val_batches=0, callbacks=[watch, guards])
    trainer.fit(module, datamodule=data)
    norm = trainer.logged_metrics["train/grad_norm"]
    torch.save([watch.weights, watch.captions, watch.draws, guards.skipped, norm, module.loss.past], folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two processes")
    with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(folder / "cache"))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        start(work, 2, port, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_batch_that_is_no_number_on_one_process_is_skipped_by_both(both):
    (weights, *_, skipped, norm, past), (others, *_, also, other_norm, other_past) = both
    assert skipped == also == 1
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights, others, strict=True))
    assert len(weights) == 6
    assert torch.equal(weights[BAD], weights[BAD + 1])
    assert not any(torch.equal(weights[at], weights[at + 1]) for at in range(5) if at != BAD)
    assert weights[-1].isfinite().all()
    assert past.isfinite().all()
    assert torch.equal(past, other_past)
    assert 0 < float(norm) == float(other_norm)


def test_weights_begin_alike_while_dropout_and_captions_differ(both):
    (weights, captions, draws, *_), (others, other_captions, other_draws, *_) = both
    assert torch.equal(weights[0], others[0])
    assert not any(torch.equal(mine, theirs) for mine, theirs in zip(draws, other_draws, strict=True))
    assert not any(mine == theirs for mine, theirs in zip(captions, other_captions, strict=True))
