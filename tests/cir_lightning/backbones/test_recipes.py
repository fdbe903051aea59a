"""Overlays of LVLMs on a benchmark's recipe, the whole way through the command line, with tiny models of the real architectures."""

import json
import shutil

import pytest
import yaml
from fakes.lvlms import SIDE, write_lvlm
from fakes.qwen import HEAD, checkpoint
from fakes.shoes import write_shoes

from cir_lightning.cli import main, recipe_folder

LVLMS = {"llava-1.6": "llava_next", "qwen2.5-vl": "qwen2_5_vl", "smolvlm": "smolvlm", "gemma3": "gemma3", "blip2": "blip-2"}
SMALL = {
    "trainer": {"max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    "model": {
        "yardsticks": False,
        "encoder": {
            "init_args": {
                "backbone": {"init_args": {"image_size": SIDE}},
                "connector": {"init_args": {"queries": 2, "width": 32, "depth": 1, "heads": 4}},
                "soft_prompt": {"init_args": {"size": 4, "tokens": 1, "chosen": 2}},
                "width": 16,
            }
        },
    },
    "data": {"init_args": {"batch_size": 8}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A miniature of Shoes; commands run in it."""
    write_shoes(tmp_path / "data" / "shoes")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    return tmp_path


def words(name, folder, *configs):
    model = f"--model.encoder.init_args.backbone.init_args.model={folder / 'model'}"
    return [*(word for config in ("shoes.yaml", f"backbones/{name}.yaml", *configs) for word in ("--config", config)), model]


@pytest.mark.parametrize("name", LVLMS)
def test_an_lvlm_is_trained_and_tested_without_pickles_of_its_base(name, folder):
    write_lvlm(LVLMS[name], folder / "model")
    assert main(["fit", *words(name, folder, "small.yaml")]) == 0
    checkpoint = folder / "runs" / "shoes" / "checkpoints" / "best.ckpt"
    assert checkpoint.stat().st_size < 500_000
    assert main(["test", "--ckpt_path", "runs/shoes"]) == 0
    report = json.loads((folder / "runs" / "shoes" / "val" / "results.json").read_text())
    assert {row["method"] for row in report["rows"]} == {"CIR-LVLM"}
    shutil.rmtree(folder / "cache")
    assert main(["predict", "--ckpt_path", "runs/shoes"]) == 0


def test_a_trained_vision_transformer_is_scored_as_it_was_validated(folder, capsys):
    """Its pictures go through it anew; the cache has those of the frozen one."""
    write_lvlm("qwen2_5_vl", folder / "model")
    adapters = {"rank": 4, "targets": ["qkv", "proj", "gate_proj"]}
    config = {"model": {"lora_lr": 0.05, "encoder": {"init_args": {"backbone": {"init_args": {"vision_lora": adapters}}}}}}
    (folder / "vision.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", *words("qwen2.5-vl", folder, "small.yaml", "vision.yaml")]) == 0
    after_training = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  CIR-LVLM")]
    assert main(["test", "--ckpt_path", "runs/shoes/checkpoints/last.ckpt"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("  CIR-LVLM")] == after_training


@pytest.mark.parametrize("name", ["qwen2.5-vl", "internvl3", "paligemma2"])
def test_zero_shot(name, folder):
    write_lvlm({"internvl3": "internvl", "paligemma2": "paligemma"}.get(name, "qwen2_5_vl"), folder / "model")
    size = f"--model.encoder.init_args.backbone.init_args.image_size={SIDE}"
    assert main(["test", *words(name, folder, "zero-shot.yaml"), size, "--trainer.accelerator", "cpu"]) == 0
    (table,) = (folder / "runs" / "shoes").rglob("results.json")
    assert table.parent.parent.name == "untrained"
    assert 0 < json.loads(table.read_text())["rows"][0]["figures"]["R@50"] <= 100


def test_every_lvlm_has_the_same_keys():
    """A table that compares them must not compare settings."""
    settings = []
    for file in sorted((recipe_folder() / "backbones").glob("*.yaml")):
        config = yaml.safe_load(file.read_text())
        backbone = config["model"]["encoder"]["init_args"].pop("backbone")["init_args"]
        settings.append(config)
        assert {"dtype", "quantisation", "gradient_checkpointing", "lora"} < set(backbone)
    assert all(one == settings[0] for one in settings)


@pytest.mark.parametrize("native", [False, True])
def test_qwen_vl_chat(native, folder, monkeypatch):
    """From the published layout: converted, trained and tested, with its own visual tokens and with its own adapter as the Connector."""
    monkeypatch.setattr("cir_lightning.backbones.qwen_vl.HEAD", HEAD)
    assert main(["convert", "qwen-vl-chat", str(checkpoint(folder / "source")), str(folder / "model")]) == 0
    model = "--model.encoder.init_args.backbone.init_args.folder=model"
    options = [word for word in words("qwen-vl-chat", folder, "small.yaml") if "init_args.model=" not in word] + [model]
    templates = {"query_template": "{vision}{soft} Modify: {caption}:", "target_template": "{vision}{soft} Picture:"}
    adapter = {"class_path": "cir_lightning.backbones.qwen_vl.QwenResampler", "init_args": {"folder": "model", "queries": 16}}
    if not native:
        (folder / "own.yaml").write_text(yaml.safe_dump({"model": {"encoder": {"init_args": {"connector": adapter}}}}))
        options += ["--config", "own.yaml"]
    else:
        (folder / "native.yaml").write_text(yaml.safe_dump({"model": {"encoder": {"init_args": {"connector": None, **templates}}}}))
        options += ["--config", "native.yaml"]
    assert main(["fit", *options, "--model.encoder.init_args.backbone.init_args.image_size=24"]) == 0
    assert main(["test", "--ckpt_path", "runs/shoes"]) == 0
