"""``cir estimate`` of every recipe and of real sizes, without weights."""

import json
import time
from pathlib import Path

import pytest
import transformers
import yaml
from fakes.lvlms import SQUARE, TEXT, tiny_config
from fakes.qwen import HEAD, checkpoint

from cir_lightning.cli import main, recipe_folder

COMPLETE = sorted(path.name for path in recipe_folder().glob("*.yaml") if "seed_everything" in path.read_text())
OVERLAYS = ("combiner.yaml", "demo.yaml", "emoji-long.yaml")
BACKBONES = sorted(path.name for path in (recipe_folder() / "backbones").glob("*.yaml"))
FAMILY = {"blip2": "blip-2", "llava-1.5": "llava", "llava-1.6": "llava_next", "internvl3": "internvl", "paligemma2": "paligemma"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch, converted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIR_CACHE", str(converted))


def estimated(capsys, *arguments):
    """What the command prints, and its JSON file."""
    assert main(["estimate", *arguments, "--json", "estimate.json"]) == 0
    return capsys.readouterr().out, json.loads(Path("estimate.json").read_text(encoding="utf-8"))


def column(table, name):
    """A column of a table of the JSON file, found by the beginning of its name."""
    return {row: next(value for key, value in values.items() if key.startswith(name)) for row, values in table.items()}


@pytest.mark.parametrize("configs", [*([one] for one in COMPLETE), *(["emoji.yaml", one] for one in OVERLAYS)], ids="+".join)
def test_every_recipe(configs, capsys):
    shown, tables = estimated(capsys, *(f"--config={config}" for config in configs), "--gpu=cpu-2")
    asked = yaml.safe_load((recipe_folder() / configs[-1]).read_text())["trainer"]["max_steps"]
    assert f"hours of training, {asked:,} batches" in shown
    total = column(tables["parameters"], "total")
    assert total["all"] == sum(total.values()) / 2
    assert tables["parameters"]["vision tower and projector"]["trainable"] == 0
    fits = tables[f"batch_size {tables['setting']['batch_size']} on cpu-2"]["fits"]
    assert set(fits.values()) == {"yes"}
    assert "peak memory of a GPU is unrun" in shown


def model_options(recipe, folder):
    """Options that put a tiny configuration, and nothing else, in the place of a recipe's models."""
    name, backbone = recipe.removesuffix(".yaml"), "--model.encoder.init_args.backbone.init_args"
    if name == "siglip2-qwen3":
        transformers.SiglipVisionConfig(**SQUARE).save_pretrained(folder / "vision")
        transformers.Qwen3Config(**TEXT).save_pretrained(folder / "llm")
        return [f"{backbone}.{part}={folder / part}" for part in ("vision", "llm")]
    if name == "qwen-vl-chat":
        assert main(["convert", name, str(checkpoint(folder / "source")), str(folder / "model")]) == 0
        return [f"{backbone}.folder={folder / 'model'}", f"{backbone}.image_size=24"]
    family = FAMILY.get(name, name.replace("-", "_").replace(".", "_"))
    tiny_config(family).save_pretrained(folder / "model")
    return [f"{backbone}.model={folder / 'model'}"]


@pytest.mark.parametrize("recipe", BACKBONES)
def test_every_backbone(recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("cir_lightning.backbones.qwen_vl.HEAD", HEAD)
    configs = ["--config=fashioniq.yaml", f"--config=backbones/{recipe}"]
    _, tables = estimated(capsys, *configs, *model_options(recipe, tmp_path), "--gpu=rtx4090-24")
    assert tables["parameters"]["adapters"]["trainable"] > 0
    assert tables["tokens"]["target"]["of one"] > 72  # 32 image tokens, 40 of the soft prompt, and words
    assert tables["feature cache"]["each, and all pictures"]["one picture [bytes]"] > 0


def test_nothing_is_trained_in_zero_shot(capsys, tmp_path):
    configs = [f"--config={name}.yaml" for name in ("fashioniq", "backbones/qwen2.5-vl", "zero-shot")]
    _, tables = estimated(capsys, *configs, *model_options("qwen2.5-vl.yaml", tmp_path))
    assert tables["parameters"]["all"]["trainable"] == 0
    assert set(tables["memory of one GPU"]) == {"weights", "features of the pictures", "all", "h100-80 less 10%"}
    assert not any("backward" in row for row in tables["compute"])
    assert tables["tokens"]["target"]["of one"] > 256


def test_the_numbers_of_the_paper_recipe_on_the_mini_model(capsys):
    shown, tables = estimated(capsys, "--config=fashioniq.yaml", "--gpu=a100-80", "--nodes=2", "--devices=4", "--utilisation=0.5")
    assert shown.startswith("2 x 4 a100-80 (80 GiB), batch_size 128 each, 32-true")
    assert tables["parameters"]["LLM"] == {"total": 42_472_512, "trainable": 0, "memory [bytes]": 4 * 42_472_512}
    trainable = tables["parameters"]["all"]["trainable"]
    memory = column(tables["memory of one GPU"], "all activations kept")
    assert (memory["gradients"], memory["optimizer (AdamW)"], memory["DDP buckets"]) == (4 * trainable, 8 * trainable, 4 * trainable)
    parts = [value for name, value in memory.items() if name not in {"all", "a100-80 less 10%"}]
    assert memory["all"] == sum(parts)
    assert memory["a100-80 less 10%"] == 80 * 2**30 * 0.9
    assert tables["feature cache"]["each, and all pictures"]["pictures"] == 54_885
    assert tables["feature cache"]["each, and all pictures"]["one picture [bytes]"] == 25 * 496 * 2
    compute = column(tables["compute"], "all activations kept")
    seconds = compute["seconds of a batch at 50% of 19.5 TFLOP/s"]
    assert seconds == pytest.approx(compute["all, of a batch on one GPU [TFLOP]"] / 19.5 / 0.5)
    assert compute["triplets a second, all GPUs"] == pytest.approx(8 * 128 / seconds)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--trainer.devices=[0,2,3]"], "1 x 3"),
        (["--trainer.devices='0,1'"], "1 x 2"),
        (["--trainer.devices=4", "--trainer.num_nodes=2"], "2 x 4"),
        (["--trainer.devices=auto", "--devices=8"], "1 x 8"),
    ],
)
def test_how_many_devices(options, shown, capsys):
    assert estimated(capsys, "--config=emoji.yaml", *options)[0].startswith(f"{shown} h100-80")


def test_chunks_take_memory_once_and_time_again(capsys):
    """By hand from the figures of a batch as large as the chunk."""
    whole = estimated(capsys, "--config=emoji.yaml", "--data.batch_size=16")[1]
    chunked = estimated(capsys, "--config=emoji.yaml", "--data.batch_size=512", "--model.chunk=16")[1]
    once, now = (column(tables["memory of one GPU"], "all activations kept") for tables in (whole, chunked))
    queries = whole["tokens"]["query"]["of one"] / sum(side["of one"] for side in whole["tokens"].values())
    chunk = now["activations of a chunk of 16"]
    assert queries * once["activations, LLM"] < chunk < 1.05 * queries * once["activations, LLM"]  # the longer side; a mask more than that
    assert now["image tokens and soft prompts, with gradients"] == 2 * 1024 * 4 * ((8 + 2) * 576 + 496)
    assert now["features of the pictures"] == 1024 * 25 * 496 * 2
    work, again = (column(tables["compute"], "all activations kept") for tables in (whole, chunked))
    assert again["LLM, again [TFLOP]"] == pytest.approx(again["LLM, forward [TFLOP]"])
    assert again["all, of a batch on one GPU [TFLOP]"] > 32 * work["all, of a batch on one GPU [TFLOP]"]
    assert chunked["batch_size 512 on h100-80"]["largest batch_size"]["all activations kept (recipe)"] > 100_000


def test_adapters_on_the_vision_tower_are_told(capsys, tmp_path):
    configs = ["--config=fashioniq.yaml", "--config=backbones/llava-1.5.yaml", *model_options("llava-1.5.yaml", tmp_path)]
    adapters = '--model.encoder.init_args.backbone.init_args.vision_lora={"rank": 4, "targets": ["q_proj"]}'
    assert estimated(capsys, *configs, adapters)[0].count("the vision tower has adapters: pictures go through it at every step") == 2
    assert "the vision tower has adapters" not in estimated(capsys, *configs)[0]


def qwen():
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    vision = {"depth": 32, "hidden_size": 1280, "out_hidden_size": 3584, "num_heads": 16, "intermediate_size": 3420}
    return transformers.Qwen2_5_VLConfig(
        text_config={**text, "num_key_value_heads": 4, "vocab_size": 152064, "rope_parameters": rope},
        vision_config={**vision, "patch_size": 14, "spatial_merge_size": 2},
    )


def llava():
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336}
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32064}
    return transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, patch_size=14),
        text_config=transformers.LlamaConfig(**text),
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    )


@pytest.mark.parametrize(
    ("config", "recipe", "llm", "native"),
    [(qwen, "qwen2.5-vl", 7_070_619_136, 256), (llava, "llava-1.6", 6_607_605_760, 576), (llava, "llava-1.6", 6_607_605_760, 576 * 2 + 24)],
)
def test_real_sizes_take_seconds(config, recipe, llm, native, capsys, tmp_path):
    config().save_pretrained(tmp_path / "model")
    backbone = {"model": str(tmp_path / "model"), "quantisation": "nf4", "tiles": native > 600}
    encoder = {
        "backbone": {"init_args": backbone},
        "connector": None,
        "query_template": "{vision}{soft} Edit: {caption}:",
        "target_template": "{vision}{soft} Picture:",
    }
    (tmp_path / "big.yaml").write_text(yaml.safe_dump({"model": {"encoder": {"init_args": encoder}}}))
    configs = [f"--config={name}.yaml" for name in ("fashioniq", f"backbones/{recipe}", "big")]
    start = time.monotonic()
    shown, tables = estimated(capsys, *configs, "--gpu=h100-80")
    assert time.monotonic() - start < 30
    assert "with checkpointing (recipe)" in shown
    assert tables["parameters"]["LLM"]["total"] == llm
    assert 0.5 < tables["parameters"]["LLM"]["memory [bytes]"] / llm < 0.75  # the embeddings are not packed
    assert native + 40 < tables["tokens"]["target"]["of one"] < native + 60
    kept, again = (column(tables["memory of one GPU"], name)["activations, LLM"] for name in ("all", "with"))
    assert kept > 10 * again


def test_what_does_not_fit(capsys, tmp_path):
    llava().save_pretrained(tmp_path / "model")
    backbone = "--model.encoder.init_args.backbone.init_args"
    configs = ["--config=fashioniq.yaml", "--config=backbones/llava-1.6.yaml"]
    _, tables = estimated(capsys, *configs, f"{backbone}.model={tmp_path / 'model'}", f"{backbone}.dtype=float32", "--gpu=rtx4090-24")
    verdict = column(tables["batch_size 32 on rtx4090-24"], "with checkpointing (recipe)")
    assert verdict == {"fits": "no", "largest batch_size": 0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu=h1000"], r"argument --gpu: invalid choice: 'h1000'"),
        (["--nodes=0"], r"--nodes=0 is not possible; set it to 1 or more"),
        (["--trainer.devices=auto"], "trainer.devices=auto does not say how many; set --devices"),
        (["--trainer.devices=-1"], "trainer.devices=-1 does not say how many"),
        (["--trainer.devices=0"], "trainer.devices=0 does not say how many"),
        (["--trainer.num_nodes=0"], "trainer.num_nodes=0 is not possible; set it to 1 or more"),
        (["--utilisation=40"], r"--utilisation=40.0 is no share; set it above 0 and up to 1"),
        (["--margin=1"], r"--margin=1.0 is no share"),
        (["--model.lrr=1"], "lrr"),
        (["--json=/dev/null/me.json"], "--json /dev/null/me.json: cannot be written"),
    ],
)
def test_mistakes(arguments, words, capsys):
    assert main(["estimate", "--config=emoji.yaml", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_unknown_recipe(capsys):
    assert main(["estimate", "--config=emojj.yaml"]) == 2
    assert "recipes are" in capsys.readouterr().err


def test_pictures_that_nobody_has_counted(capsys):
    shown, _ = estimated(capsys, "--config=genecis.yaml")
    assert "the number of pictures is not known; give it with --pictures" in shown
    _, tables = estimated(capsys, "--config=genecis.yaml", "--pictures=1000")
    assert tables["feature cache"]["each, and all pictures"]["pictures"] == 1000


def test_help_is_light(capsys):
    assert main(["estimate", "--help"]) == 0
    assert "--utilisation" in capsys.readouterr().out
