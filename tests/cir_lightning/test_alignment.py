"""Late interaction against a loop; a few steps of alignment on the tiny model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes.build import tiny_encoder, tiny_module, tiny_trainer
from fakes.tiny import TinyCIR

from cir_lightning.alignment import TitleAlignment, late_interaction
from cir_lightning.backbones.combiner import Combiner
from cir_lightning.callbacks import LastCheckpoint
from cir_lightning.connector import Resampler
from data_modules.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))


def test_late_interaction_is_the_mean_of_the_nearest_cosines():
    image, words = torch.randn(3, 4, 5), torch.randn(3, 6, 5)
    lengths = [6, 1, 3]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    got = late_interaction(image, words, mask).numpy()
    a, b = image.numpy(), words.numpy()
    for i in range(3):
        for j in range(3):
            best = [max(float(q @ b[j, w] / np.linalg.norm(q) / np.linalg.norm(b[j, w])) for q in a[i]) for w in range(lengths[j])]
            assert got[i, j] == pytest.approx(np.mean(best), abs=1e-6)


class Recorder(TitleAlignment):
    """Keeps what is logged, and stops before training."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.figures = []

    def _log(self, trainer, step, figures):
        self.figures.append(figures["align/own_title"])


def fit(callback, root, *, encoder=None, **data):
    module = tiny_module(encoder=encoder or tiny_encoder(connector=Resampler(4, 64, depth=1, heads=4)))
    trainer = tiny_trainer(root, max_steps=1, limit_val_batches=0, callbacks=[callback])
    trainer.fit(module, datamodule=TinyCIR(str(root), **data))
    return module


def test_pictures_find_their_own_titles(tmp_path):
    callback = Recorder(120, 40, lr=5e-3)
    fit(callback, tmp_path)
    assert callback.figures[0] < 0.3
    assert callback.figures[-1] > 0.8


def test_only_the_connector_is_aligned(tmp_path):
    before = {}

    class Snapshots(TitleAlignment):
        def _align(self, trainer, module, pictures):
            before.update({name: p.detach().clone() for name, p in module.named_parameters()})
            super()._align(trainer, module, pictures)
            changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
            assert changed == {f"encoder.connector.{name}" for name, _ in module.encoder.connector.named_parameters()}
            assert all(p.grad is None for p in module.parameters())

    fit(Snapshots(3, 8), tmp_path)
    assert before


def test_stopped_in_the_middle_it_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    def run(root, checkpoint=None):
        module = tiny_module(encoder=tiny_encoder(connector=Resampler(4, 64, depth=1, heads=4)))
        callbacks = [TitleAlignment(9, 16), LastCheckpoint(root / "checkpoints")]
        trainer = tiny_trainer(root, max_steps=1, limit_val_batches=0, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(module, datamodule=TinyCIR(str(tmp_path)), ckpt_path=checkpoint, weights_only=True)
        return module

    def stop_at_4(callback, *arguments):
        if callback.done == 4:
            raise KeyboardInterrupt
        return loss(callback, *arguments)

    whole = run(tmp_path / "whole")
    loss = TitleAlignment._loss
    with monkeypatch.context() as patch:
        patch.setattr(TitleAlignment, "_loss", stop_at_4)
        with pytest.raises(SystemExit):
            run(tmp_path / "cut")
    resumed = run(tmp_path / "cut", tmp_path / "cut" / "checkpoints" / "last.ckpt")
    for name, parameter in whole.encoder.named_parameters():
        assert torch.equal(parameter, resumed.encoder.get_parameter(name)), name


def test_0_steps_switch_it_off(tmp_path):
    callback = Recorder(0)
    fit(callback, tmp_path, titles=False)
    assert callback.figures == []


def test_titles_are_needed(tmp_path):
    with pytest.raises(UserError, match=r"TitleAlignment\.batch_size=8 is more than the 0 training pictures with a title"):
        fit(TitleAlignment(3, 8), tmp_path, titles=False)
    with pytest.raises(UserError, match=r"batch_size=64 is more than the 40 training pictures"):
        fit(TitleAlignment(3, 64), tmp_path)


def test_a_connector_is_needed():
    with pytest.raises(UserError, match=r"needs a Connector, which Combiner does not have; remove it from trainer\.callbacks"):
        TitleAlignment(3, 8).setup(SimpleNamespace(), SimpleNamespace(encoder=Combiner(), init_from=None), "fit")
