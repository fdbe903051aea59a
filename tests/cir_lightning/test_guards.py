"""Gradients that are no numbers, and what collapses."""

import math
from types import SimpleNamespace

import pytest
import torch
from fakes.build import tiny_encoder, tiny_module, tiny_trainer
from fakes.tiny import TinyCIR
from lightning.pytorch import Callback
from torch.nn.functional import normalize

from cir_lightning.guards import Guards, mean_cosine
from cir_lightning.loss import InfoNCE
from cir_lightning.prompt_pool import PromptPool
from data_modules.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))


class Spoilt(Callback):
    """Makes the features of one picture NaN before the second step, for one step; keeps weights and the picture's name."""

    def __init__(self):
        self.weights = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Spoil."""
        see = type(pl_module.encoder).see
        if trainer.global_step == 1 and batch_idx == 1:
            bad = int(batch.target[0])
            self.name = pl_module.data.pictures[bad].name
            bad_features = pl_module.features[pl_module.feature_rows(torch.tensor([bad]))]

            def spoilt(features, vision=None):
                sight = see(pl_module.encoder, features, vision)
                hit = (features == bad_features).flatten(1).all(1)
                return sight._replace(image=torch.where(hit[:, None, None], math.nan, sight.image))

            pl_module.encoder.see = spoilt
        else:
            pl_module.encoder.__dict__.pop("see", None)

    def on_train_batch_end(self, trainer, pl_module, *_):
        """Keep."""
        self.weights.append({name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad})


def fit(folder, on_nonfinite, steps=4):
    module, spoilt, guards = tiny_module(), Spoilt(), Guards(on_nonfinite)
    module.loss = InfoNCE(temperature=0.1, memory=40)
    trainer = tiny_trainer(folder, max_steps=steps, callbacks=[spoilt, guards], gradient_clip_val=1.0)
    try:
        trainer.fit(module, datamodule=TinyCIR(str(folder)))
    finally:
        spoilt.guards, spoilt.metrics = guards, trainer.logged_metrics
    return spoilt


def test_a_gradient_that_is_no_number_stops_and_names_the_triplets(tmp_path):
    with pytest.raises(UserError, match=r"step 1: the gradient's norm is nan, and embeddings of .* are no numbers; look at these") as error:
        fit(tmp_path, "stop")
    assert " -> " in str(error.value)
    assert "--on_nonfinite skip" in str(error.value)


def test_such_batches_can_be_left_out_and_are_counted(tmp_path):
    with pytest.warns(UserWarning, match=r"step 1: batch skipped, the 1\. of this run; the gradient's norm is nan"):
        run = fit(tmp_path, "skip")
    assert run.guards.state_dict() == {"skipped": 1}
    first, bad, *rest = run.weights
    assert all(torch.equal(first[name], weight) for name, weight in bad.items())
    assert all(torch.isfinite(weight).all() for weight in rest[-1].values())
    assert any(
        not torch.equal(bad[name], weight) for name, weight in rest[-1].items()
    )  # it goes on, though the batch's targets were remembered
    assert run.metrics["train/grad_norm"] > 0


def test_mean_cosine_of_different_targets():
    vectors = normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    ids = torch.tensor([0, 1, 2, 0, 3, 4])
    pairs = [float(vectors[i] @ vectors[j]) for i in range(6) for j in range(6) if ids[i] != ids[j]]
    assert mean_cosine(vectors, ids) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert mean_cosine(vectors[:2], torch.tensor([7, 7])) == 0


def look(embeddings, loss=None, chosen=None, guards=None):
    module = SimpleNamespace(warmup_steps=0, last_embeddings=(None, embeddings), loss=loss or InfoNCE(temperature=0.1), last_chosen=chosen)
    (guards or Guards(every=1)).on_train_batch_end(
        SimpleNamespace(global_step=5), module, None, SimpleNamespace(content=torch.arange(len(embeddings))), 0
    )


DIFFERENT = torch.eye(4)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            {"embeddings": normalize(torch.ones(4, 4) + 0.01 * DIFFERENT, dim=1)},
            r"targets have a mean cosine of 1\.000: everything",
        ),
        ({"embeddings": DIFFERENT, "loss": InfoNCE(temperature=0.0101)}, r"the temperature has come down to its bound 0\.01; try"),
        (
            {"embeddings": DIFFERENT, "chosen": torch.tensor([[3, 1], [1, 3], [3, 1]])},
            "pool gives every picture the same prompts",
        ),
    ],
)
def test_what_has_collapsed_is_said_once(what, words, recwarn):
    guards = Guards(every=1)
    with pytest.warns(UserWarning, match=words):
        look(**what, guards=guards)
    recwarn.clear()
    look(**what, guards=guards)
    assert not recwarn.list


def test_nothing_is_said_of_what_is_well(recwarn):
    look(DIFFERENT, InfoNCE(temperature=0.01, learn_temperature=False, min_temperature=0), torch.tensor([[3, 1], [1, 2]]))
    look(normalize(torch.ones(4, 4), dim=1), guards=Guards(every=4))  # step 5 is none of these
    assert not recwarn.list


def test_a_warm_up_as_long_as_the_run(tmp_path):
    module = tiny_module(encoder=tiny_encoder(soft_prompt=PromptPool(6, 2, chosen=2)), warmup_steps=3)
    with pytest.warns(UserWarning, match=r"model\.warmup_steps=3 of 3 steps: the learning rate never gets where it is set to"):
        tiny_trainer(tmp_path, max_steps=3).fit(module, datamodule=TinyCIR(str(tmp_path)))


def test_a_model_that_collapses_in_training_is_noticed(tmp_path):
    module = tiny_module(lr=0.9, lora_lr=0.9, warmup_steps=0)
    trainer = tiny_trainer(tmp_path, max_steps=12, callbacks=[Guards(every=4)], limit_val_batches=0)
    with pytest.warns(UserWarning, match=r"different targets have a mean cosine of (0\.9[89]|1\.0).*try a lower model\.lr"):
        trainer.fit(module, datamodule=TinyCIR(str(tmp_path)))


@pytest.mark.parametrize("key", ["lr", "lora_lr", "weight_decay", "final_lr"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-3])
def test_rates_that_cannot_train_are_refused(key, value):
    with pytest.raises(UserError, match=rf"model\.{key}={value} is not possible"):
        tiny_module(**{key: value})


@pytest.mark.parametrize(("key", "value"), [("lr", 1.0), ("lora_lr", 5.0), ("final_lr", 1.5), ("lr", 0.0)])
def test_rates_far_beyond_sense_are_refused(key, value):
    with pytest.raises(UserError, match=rf"model\.{key}={value} is not possible"):
        tiny_module(**{key: value})
