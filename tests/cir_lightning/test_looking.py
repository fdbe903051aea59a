"""Models that look at pictures at every step: with adapters on the vision tower, or with augmented training pictures."""

import pytest
import torch
from fakes.build import tiny_encoder, tiny_module, tiny_trainer
from fakes.tiny import TinyCIR, TinyLVLM, TinyTower
from lightning.pytorch import Callback

from data_modules.collate import distinct


class Steps(Callback):
    """What happened in training: losses, and how many pictures went through the tower at each step."""

    def __init__(self):
        self.losses, self.looks, self.pictures = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):  # noqa: D102
        self.before = pl_module.encoder.backbone.tower.seen
        self.pictures.append(len(distinct(batch.reference, batch.target)[0]))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # noqa: D102
        self.losses.append(outputs["loss"].item())
        self.looks.append(pl_module.encoder.backbone.tower.seen - self.before)


class Seeing(TinyLVLM):
    """Its tower says that it is trained."""

    def build(self):  # noqa: D102
        super().build()
        self.tower.trained = True


def fit(folder, augment="none", backbone=None, **options):
    data, steps = TinyCIR(str(folder)), Steps()
    data.augment = augment
    encoder = tiny_encoder(**options)
    if backbone:
        encoder.backbone = backbone
    module = tiny_module(encoder=encoder)
    trainer = tiny_trainer(folder, max_epochs=1, callbacks=[steps])
    trainer.fit(module, datamodule=data)
    return steps, trainer.callback_metrics


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))


def test_looking_at_pictures_gives_what_the_cache_gives(tmp_path):
    cached, figures = fit(tmp_path)
    looking, same = fit(tmp_path, backbone=Seeing(tiny_encoder().backbone.lora))
    assert cached.looks == [0] * len(cached.losses)
    assert looking.looks == looking.pictures
    assert looking.losses == cached.losses
    assert "val/tiny/avg/R@1" in figures
    assert same == figures


@pytest.mark.parametrize("pooling", [1, 2])
def test_augmented_pictures_switch_the_cache_off_and_say_so(tmp_path, caplog, pooling):
    with caplog.at_level("INFO"):
        steps, _ = fit(tmp_path, "crop", patch_pooling=pooling)
    assert steps.looks == steps.pictures
    assert "data.augment=crop: training pictures go through the vision tower at every step; cached features serve" in caplog.text
    plain, _ = fit(tmp_path, patch_pooling=pooling)
    assert plain.looks == [0] * len(plain.losses)
    assert all(one != other for one, other in zip(steps.losses, plain.losses, strict=True))


def test_scoring_does_not_look_again(tmp_path):
    data, module = TinyCIR(str(tmp_path)), tiny_module()
    data.augment = "crop"
    tower = TinyTower
    tiny_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert isinstance(module.encoder.tower, tower)
    assert module.encoder.tower.seen == len(data.pictures)


def test_features_that_are_pooled_train_and_come_back(tmp_path):
    steps, figures = fit(tmp_path, patch_pooling=2, patch_dtype="bfloat16")
    assert torch.isfinite(torch.tensor(steps.losses)).all()
    assert figures["val/tiny/avg/R@1"] >= 0
    (folder,) = [path for path in (tmp_path / "cache" / "features").iterdir() if path.is_dir() and path.name != "hashes"]
    assert folder.name.startswith("tiny-bfloat16-pooled2-letterbox")
