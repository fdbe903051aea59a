"""A base that is sharded by FSDP2 beside DDP, on two real processes."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fakes.build import tiny_module

from cir_lightning.backbones.combiner import Combiner
from cir_lightning.checkpoint import trained_state
from cir_lightning.sharding import ShardedBase
from data_modules.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What every process of both strategies found, and the last checkpoints."""
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(folder / "cache"))
        run = subprocess.run([sys.executable, "-m", "fakes.shards", str(folder)], capture_output=True, text=True, timeout=150, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    found = {(name, rank): torch.load(folder / f"{name}-{rank}.pt") for name in ("sharded", "ddp") for rank in (0, 1)}
    return found, {name: torch.load(folder / name / "last.ckpt", weights_only=True) for name in ("sharded", "ddp")}


def test_the_losses_are_those_of_ddp(runs):
    found, _ = runs
    for rank in (0, 1):
        assert len(found["ddp", rank]["losses"]) == 6
        assert found["sharded", rank]["losses"] == pytest.approx(found["ddp", rank]["losses"], abs=1e-5)
    assert abs(found["ddp", 0]["losses"][0] - found["ddp", 0]["losses"][-1]) > 0.05


def test_figures_and_scores_are_those_of_ddp(runs):
    found, _ = runs
    assert found["sharded", 0]["figures"] == found["sharded", 1]["figures"] == found["ddp", 0]["figures"]
    for name, scores in found["ddp", 0]["scores"].items():
        torch.testing.assert_close(found["sharded", 0]["scores"][name], scores, atol=1e-5, rtol=0)


def test_each_process_holds_half_of_the_layers(runs):
    found, _ = runs
    held = [found["sharded", rank]["held"] for rank in (0, 1)]
    assert held[0][0] + held[1][0] == held[0][1]
    assert abs(held[0][0] - held[1][0]) < 0.1 * held[0][1]
    assert found["ddp", 0]["held"][0] == found["ddp", 0]["held"][1] == held[0][1]


def test_checkpoints_are_those_of_one_process(runs):
    _, last = runs
    module = tiny_module()
    module.configure_model()
    names = trained_state(module, module.state_dict()).keys()
    assert last["sharded"]["state_dict"].keys() == last["ddp"]["state_dict"].keys() == names
    for name, tensor in last["ddp"]["state_dict"].items():
        torch.testing.assert_close(last["sharded"]["state_dict"][name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    module.load_state_dict(last["sharded"]["state_dict"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunk": 4}, "model.chunk=4 does not go with trainer.strategy=sharded"),
        ({}, "backbone.quantisation does not go with"),
    ],
)
def test_what_cannot_be_sharded(options, words):
    module = tiny_module(**options)
    module.encoder.quantised = not options
    module._trainer = SimpleNamespace(strategy=ShardedBase(), precision="32-true")
    module._trainer.strategy.parallel_devices = [torch.device("cpu")]
    module._trainer.strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)
    with pytest.raises(UserError, match=words):
        module.setup("fit")


def test_an_encoder_without_an_llm():
    with pytest.raises(UserError, match=r"trainer\.strategy=sharded: Combiner has no LLM to shard; use ddp"):
        ShardedBase().shard(Combiner())
