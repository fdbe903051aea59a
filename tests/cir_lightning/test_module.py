"""Training and evaluation of the tiny model by a plain Lightning trainer, on one process and on several."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fakes.build import tiny_encoder, tiny_module, tiny_trainer
from fakes.tiny import TinyCIR
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from cir_lightning.callbacks import LastCheckpoint, best_checkpoint
from cir_lightning.loss import InfoNCE
from cir_lightning.module import CIRModule
from cir_lightning.prompt_pool import PromptPool, UniversalPrompt
from data_modules.collate import TripletBatch
from data_modules.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Keep."""
        self.values.append(float(outputs["loss"]))


def test_fit_then_test(tmp_path):
    data, module, losses = TinyCIR(str(tmp_path)), tiny_module(), Losses()
    trainer = tiny_trainer(tmp_path, max_steps=3, callbacks=[losses])
    trainer.fit(module, datamodule=data)
    assert len(losses.values) == 3
    (figures, _) = trainer.test(module, datamodule=data, verbose=False)
    metrics = ("R@1", "R@5", "R@10", "R_subset@1", "R_subset@2", "R_subset@3")
    expected = {f"test/tiny/{group}/{metric}" for group in ("colour", "shape", "avg") for metric in metrics}
    assert set(figures) == expected
    assert figures["test/tiny/avg/R@1"] == pytest.approx((figures["test/tiny/colour/R@1"] + figures["test/tiny/shape/R@1"]) / 2)


def test_metrics_are_those_of_a_plain_loop(tmp_path):
    """Every query against every gallery picture, one at a time, without loaders, tables and batches."""
    data, module = TinyCIR(str(tmp_path), eval_batch_size=7), tiny_module()
    (figures, _) = tiny_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    encoder = module.encoder.eval()
    with torch.no_grad():
        sights = {p.name: encoder.see(module.features[i : i + 1]) for i, p in enumerate(data.pictures)}
        targets = {name: encoder.encode_target(sight)[0] for name, sight in sights.items()}
        for evaluation in data.evaluation_sets("val"):
            hits = 0
            for query in evaluation.queries:
                vector = encoder.encode_query(sights[query.reference], [query.caption])[0]
                scores = {name: float(vector @ targets[name]) for name in evaluation.gallery if name != query.reference}
                hits += max(scores, key=scores.__getitem__) in query.targets
            assert figures[f"val/{evaluation.name}/R@1"] == pytest.approx(100 * hits / len(evaluation.queries), abs=1e-4)


def test_the_training_loss_is_that_of_encoding_every_picture_separately(tmp_path):
    data, module = TinyCIR(str(tmp_path)), tiny_module(encoder=tiny_encoder(soft_prompt=PromptPool(6, 2, chosen=2, pull=0)))
    tiny_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    batch = next(iter(data.train_dataloader()))
    assert len(set(batch.target.tolist())) < len(batch.target)  # a target comes twice: a false negative
    module.log_dict = module.log = lambda *_, **__: None
    loss = module.training_step(TripletBatch(*batch), 0)
    see = module.encoder.see
    query = module.encoder.encode_query(see(module.features[batch.reference]), batch.captions)
    target = module.encoder.encode_target(see(module.features[batch.target]))
    torch.testing.assert_close(loss, InfoNCE(temperature=0.1)(query, target, batch.target), atol=1e-5, rtol=0)


def test_resuming_equals_going_on(tmp_path):
    class Weights(Callback):
        def on_train_end(self, trainer, pl_module):
            self.end = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}

    def fit(seed, checkpoint=None):
        module, weights, losses = tiny_module(seed), Weights(), Losses()
        keep = ModelCheckpoint(tmp_path / f"run{seed}", filename="{epoch}", save_top_k=-1)
        trainer = tiny_trainer(tmp_path, max_epochs=2, callbacks=[keep, weights, losses], enable_checkpointing=True)
        trainer.fit(module, datamodule=TinyCIR(str(tmp_path)), ckpt_path=checkpoint)
        return weights.end, losses.values

    whole, losses = fit(0)
    file = tmp_path / "run0" / "epoch=0.ckpt"
    resumed, rest = fit(1, file)  # another seed: nothing of the new weights may survive
    assert rest == losses[len(losses) // 2 :]
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
    assert file.stat().st_size < 1e6
    assert set(torch.load(file, weights_only=True)["state_dict"]) == whole.keys() | {
        "encoder.standardise.mean",
        "encoder.standardise.scale",
    }


def test_resuming_in_the_middle_of_an_epoch_goes_on_with_its_data(tmp_path):
    def fit(seed, checkpoint=None):
        losses = Losses()
        keep = ModelCheckpoint(tmp_path / f"run{seed}", filename="{step}", save_top_k=-1, every_n_train_steps=3)
        trainer = tiny_trainer(tmp_path, max_epochs=2, callbacks=[keep, losses], enable_checkpointing=True)
        trainer.fit(tiny_module(seed), datamodule=TinyCIR(str(tmp_path)), ckpt_path=checkpoint)
        return losses.values

    whole = fit(0)
    assert len(whole) > 6  # the checkpoint of step 3 lies inside the first epoch
    assert fit(1, tmp_path / "run0" / "step=3.ckpt") == whole[3:]


@pytest.mark.parametrize("at", [1, 2, 4, 5, 11])
def test_stopped_in_a_validation_it_goes_on_to_the_same_checkpoints(tmp_path, monkeypatch, at):
    """The embeddings of what came before are not in the checkpoint: the validation has to begin anew."""

    def run(root, checkpoint=None):
        folder = root / "checkpoints"
        kept = [best_checkpoint(folder, "val/tiny/avg/R@1"), LastCheckpoint(folder)]
        often = {"max_steps": 6, "val_check_interval": 2, "check_val_every_n_epoch": None}
        trainer = tiny_trainer(root, callbacks=kept, enable_checkpointing=True, **often)
        trainer.fit(tiny_module(lr=1e-2), datamodule=TinyCIR(str(tmp_path), eval_batch_size=10), ckpt_path=checkpoint, weights_only=True)
        return {name: torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("best", "last")}

    def stop(module, batch):
        steps.append(batch)
        if len(steps) == of_one + at:  # in the second of three validations
            raise KeyboardInterrupt
        return step(module, batch)

    step, steps, of_one = CIRModule._evaluation_step, [], 4 + 7  # batches of pictures and of queries
    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(CIRModule, "_evaluation_step", stop)
        with pytest.raises(SystemExit):
            run(tmp_path / "cut")
    resumed = run(tmp_path / "cut", tmp_path / "cut" / "checkpoints" / "last.ckpt")
    for name, checkpoint in whole.items():
        assert resumed[name]["global_step"] == checkpoint["global_step"]
        assert all(torch.equal(tensor, resumed[name]["state_dict"][key]) for key, tensor in checkpoint["state_dict"].items())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_rounding_precisions_are_refused(tmp_path, precision):
    with pytest.raises(UserError, match=rf"trainer\.precision='{precision}' would round .* use bf16-mixed"):
        tiny_trainer(tmp_path, max_steps=1, precision=precision).fit(tiny_module(), datamodule=TinyCIR(str(tmp_path)))


def test_quantised_weights_are_never_sharded():
    module = tiny_module()
    module.encoder.quantised = True
    module._trainer = SimpleNamespace(strategy=ModelParallelStrategy(), precision="32-true")
    with pytest.raises(UserError, match=r"backbone\.quantisation does not go with trainer\.strategy=ModelParallelStrategy, which shards"):
        module.setup("fit")


def test_mixed_precision_trains_float32_weights(tmp_path):
    module, losses = tiny_module(), Losses()
    options = {"max_steps": 2, "limit_val_batches": 0, "gradient_clip_val": 1.0, "callbacks": [losses]}
    tiny_trainer(tmp_path, precision="bf16-mixed", **options).fit(module, datamodule=TinyCIR(str(tmp_path)))
    assert len(losses.values) == 2
    assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}


def test_adapters_have_their_own_rate_and_vectors_no_decay(tmp_path):
    module = tiny_module(lr=1e-3, lora_lr=4e-3, weight_decay=0.1)
    trainer = tiny_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, datamodule=TinyCIR(str(tmp_path)))
    rows = {p: group for group in trainer.optimizers[0].param_groups for p in group["params"]}
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert len(rows) == len(trained)
    for name, p in trained.items():
        assert rows[p]["initial_lr"] == (4e-3 if "lora_" in name else 1e-3), name
        assert rows[p]["weight_decay"] == (0.1 if p.ndim > 1 else 0.0), name


def test_a_small_training_set_is_learnt_by_heart(tmp_path):
    data, losses = TinyCIR(str(tmp_path), val_is_train=True, batch_size=40, same_group=0), Losses()
    module = tiny_module(encoder=tiny_encoder(soft_prompt=UniversalPrompt(1), residual=True), lr=1e-2, lora_lr=1e-2)
    trainer = tiny_trainer(tmp_path, max_steps=60, check_val_every_n_epoch=1000, gradient_clip_val=1.0, callbacks=[losses])
    (before, _) = trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    (after, _) = trainer.validate(module, datamodule=data, verbose=False)
    assert sum(losses.values[-5:]) / 5 < 0.5 * losses.values[0]
    assert before["val/tiny/avg/R@1"] < 25
    assert after["val/tiny/avg/R@1"] > 60


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """What every process of worlds 1 to 4 found."""
    folder = tmp_path_factory.mktemp("worlds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(folder / "cache"))
        run = subprocess.run([sys.executable, "-m", "fakes.worlds", str(folder)], capture_output=True, text=True, timeout=150, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return {(world, rank): torch.load(folder / f"{world}-{rank}.pt") for world in (1, 2, 3, 4) for rank in range(world)}


def test_evaluation_is_equal_on_1_to_4_processes(worlds):
    alone = worlds[1, 0]["before"]
    for place, out in worlds.items():
        assert out["before"]["metrics"] == alone["metrics"], place
        for name, scores in alone["scores"].items():
            assert torch.equal(out["before"]["scores"][name], scores), place


def test_the_first_gradient_is_equal_on_1_to_4_processes(worlds):
    alone = worlds[1, 0]["gradients"]
    assert alone["encoder.soft_prompt.keys"].abs().max() > 1e-3
    for place, out in worlds.items():
        assert out["gradients"].keys() == alone.keys()
        for name, gradient in alone.items():
            error = (out["gradients"][name] - gradient).abs().max()
            assert error <= 1e-4 * gradient.abs().max(), (place, name)


def test_training_on_several_processes_is_training_on_one(worlds):
    """The same global batches: alignment and three steps end at the same embeddings, up to rounding."""
    alone = worlds[1, 0]["after"]["scores"]
    assert (alone["tiny/colour"] - worlds[1, 0]["before"]["scores"]["tiny/colour"]).abs().max() > 0.05
    for place, out in worlds.items():
        for name, scores in alone.items():
            torch.testing.assert_close(out["after"]["scores"][name], scores, atol=2e-3, rtol=0, msg=lambda m, p=place: f"{p}: {m}")
        first = worlds[place[0], 0]["after"]
        assert out["after"]["metrics"] == first["metrics"]
        assert all(torch.equal(a, b) for a, b in zip(out["after"]["connector"], first["connector"], strict=True)), place
