"""``cir export``: what is loaded back is the same model, also through peft alone, on exactly the base that it was trained on."""

import os
import shutil
import sys
from contextlib import nullcontext
from functools import reduce
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from fakes import runs
from fakes.lvlms import SIDE, write_lvlm
from fakes.runs import vectors
from PIL import Image
from transformers import AutoModel

from cir_lightning import load
from cir_lightning.api import make_encoder
from cir_lightning.backbones.mini import language_model_folder
from cir_lightning.checkpoint import CONFIG_KEY, trained_state
from cir_lightning.cli import main
from cir_lightning.exported import from_peft, to_peft
from cir_lightning.retrieval import report
from data_modules.errors import UserError

PACKABLE = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes wants multiples of 64
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 20).convert("RGB").save(path)
    return path


def write_run(folder, model, lora=None, **backbone):
    """Of one of transformers' LVLMs."""
    options = {"model": str(model), "dtype": "float32", "lora": LORA | (lora or {}), **backbone}
    return runs.write_run(folder, "hf.HFLVLM", options, query_template="{vision}{image}{soft} Edit: {caption}")


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return write_run(folder / "mine", write_lvlm(request.param, folder / "base"), image_size=SIDE)


def test_the_export_is_the_run(run, picture, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    assert capsys.readouterr().out == f"exported: {tmp_path / 'mine'}\n"
    files = {path.name for path in (tmp_path / "mine").iterdir()}
    assert files == {"README.md", "config.yaml", "modules.safetensors", "adapter_model.safetensors", "adapter_config.json"}
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert torch.equal(vectors(load(tmp_path / "mine"), picture), vectors(load(run), picture))
    assert load(tmp_path / "mine").transform == "pad"


def test_merged_it_gives_the_same(run, picture, tmp_path):
    assert main(["export", str(run), str(tmp_path / "mine"), "--merge"]) == 0
    assert not list((tmp_path / "mine").glob("adapter*"))
    assert AutoModel.from_pretrained(tmp_path / "mine" / "merged").config.text_config.hidden_size == 48  # a Hugging Face folder
    merged = load(tmp_path / "mine")
    assert not any("lora_" in name for name, _ in merged.encoder.named_parameters())
    torch.testing.assert_close(vectors(merged, picture), vectors(load(run), picture), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"rslora": True, "dora": True}])
def test_peft_alone_loads_the_adapter(options, tmp_path):
    from peft import PeftModel

    base = write_lvlm("llava", tmp_path / "base")
    run = write_run(tmp_path / "run", base, options)
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    llm = PeftModel.from_pretrained(AutoModel.from_pretrained(base, dtype=torch.float32).language_model, tmp_path / "mine").eval()
    assert llm.peft_config["default"].base_model_name_or_path == str(base)
    ids = torch.arange(10)[None]
    ours = load(run).encoder.backbone.llm
    with torch.no_grad():
        assert torch.equal(llm(ids).last_hidden_state, ours(ids).last_hidden_state)


def test_the_packaged_weights(picture, converted, monkeypatch, tmp_path):
    from peft import PeftModel

    monkeypatch.setenv("CIR_CACHE", str(converted))
    assert main(["export", "emoji", str(tmp_path / "mine")]) == 0
    assert torch.equal(vectors(load(tmp_path / "mine"), picture), vectors(load("emoji"), picture))
    llm = AutoModel.from_pretrained(language_model_folder(), num_hidden_layers=4)
    assert PeftModel.from_pretrained(llm, tmp_path / "mine").peft_config["default"].r == 16
    assert main(["export", "emoji", str(tmp_path / "merged"), "--merge"]) == 0
    torch.testing.assert_close(vectors(load(tmp_path / "merged"), picture), vectors(load("emoji"), picture), atol=1e-5, rtol=0)


def test_a_model_without_an_llm(picture, tmp_path):
    config = {
        "model": {"encoder": {"class_path": "cir_lightning.backbones.combiner.Combiner", "init_args": {"width": 16, "hidden": 8}}},
        "data": {"class_path": "data_modules.emoji.EmojiCIR", "init_args": {}},
    }
    built = make_encoder(config)
    built.build()
    part = torch.nn.ModuleDict({"encoder": built})
    content = {"state_dict": trained_state(part, part.state_dict()), "tower": built.tower.key, CONFIG_KEY: yaml.safe_dump(config)}
    torch.save(content | {"pytorch-lightning_version": "2.6.6"}, tmp_path / "combiner.ckpt")
    assert main(["export", str(tmp_path / "combiner.ckpt"), str(tmp_path / "mine")]) == 0
    assert not list((tmp_path / "mine").glob("adapter*"))
    assert torch.equal(vectors(load(tmp_path / "mine"), picture), vectors(load(tmp_path / "combiner.ckpt"), picture))
    assert main(["export", str(tmp_path / "combiner.ckpt"), str(tmp_path / "merged"), "--merge"]) == 2


def test_an_export_can_be_exported(run, picture, tmp_path):
    assert main(["export", str(run), str(tmp_path / "first")]) == 0
    assert main(["export", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    for name in ("config.yaml", "modules.safetensors", "adapter_model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


# ---- the base model ------------------------------------------------------------------------------------------------------------


def on_the_hub(model, hub, commit):
    """Put a model into the cache of the hub as ``me/tiny``, its main branch being at a commit."""
    folder = hub / "models--me--tiny"
    shutil.copytree(model, folder / "snapshots" / commit)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)


FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("transformers.utils.hub", "huggingface_hub")) and hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))
    on_the_hub(write_lvlm("llava_next", tmp_path / "base"), tmp_path / "hub", FIRST)
    return tmp_path / "hub"


def test_the_revision_is_pinned_and_checked(hub, picture, tmp_path):
    run = write_run(tmp_path / "run", "me/tiny")
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    config = yaml.safe_load((tmp_path / "mine" / "config.yaml").read_text())
    assert config["base"]["revision"]["commit"] == FIRST
    assert config["model"]["encoder"]["init_args"]["backbone"]["init_args"]["revision"] == FIRST
    assert "base_model:\n- me/tiny\n" in (tmp_path / "mine" / "README.md").read_text()
    before = vectors(load(run), picture)
    on_the_hub(write_lvlm("llava_next", tmp_path / "other", seed=1), hub, SECOND)  # the hub moves on
    with pytest.raises(UserError, match=f"run: was trained on the base model '.*{FIRST}.*', but 'me/tiny' is here '.*{SECOND}.*; get the"):
        load(run)
    assert torch.equal(vectors(load(tmp_path / "mine"), picture), before)
    config["model"]["encoder"]["init_args"]["backbone"]["init_args"]["revision"] = "main"
    (tmp_path / "mine" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        UserError, match=f"mine: was trained on the base model 'llava_next-me--tiny-{FIRST}.*is here '.*{SECOND}.*get revision {FIRST}"
    ):
        load(tmp_path / "mine")


def test_a_base_that_lies_elsewhere(picture, tmp_path):
    run = write_run(tmp_path / "run", write_lvlm("llava", tmp_path / "base"))
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    before = vectors(load(tmp_path / "mine"), picture)
    (tmp_path / "base").rename(tmp_path / "theirs")
    message = "mine: cannot read config.json of '.*/base'.*; if your copy of it lies elsewhere, say so in .*mine/config.yaml"
    with pytest.raises(UserError, match=message):
        load(tmp_path / "mine")
    file = tmp_path / "mine" / "config.yaml"
    file.write_text(file.read_text().replace(f"model: {tmp_path / 'base'}", f"model: {tmp_path / 'theirs'}"))
    assert torch.equal(vectors(load(tmp_path / "mine"), picture), before)


def test_another_base_than_that_of_the_run_is_not_exported(tmp_path, capsys):
    run = write_run(tmp_path / "run", write_lvlm("llava", tmp_path / "base"))
    write_lvlm("llava", tmp_path / "base", seed=1)
    assert main(["export", str(run), str(tmp_path / "mine")]) == 2
    assert "was trained on the base model 'llava-" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_weights_are_not_read_for_an_export(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", write_lvlm("llava", tmp_path / "base"))
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0


# ---- the model card ------------------------------------------------------------------------------------------------------------


def results(checkpoint):
    row = report.Row("CIR-LVLM", "shoes", {"R@1": 12.5}, 1761, 4658, 0, "00ff00ff00ff00ff", protocol="whole gallery")
    return report.Report("Shoes", "test", str(checkpoint), "1.0", "", 0, (row,), ("a note",))


def test_the_model_card(tmp_path):
    run = write_run(tmp_path / "run", write_lvlm("llava", tmp_path / "base"))
    assert main(["export", str(run), str(tmp_path / "before")]) == 0
    report.write(results(run / "checkpoints" / "best.ckpt"), run / "test")
    report.write(results(run / "checkpoints" / "last.ckpt"), run / "val")
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    before, card = ((tmp_path / name / "README.md").read_text() for name in ("before", "mine"))
    assert "No newer ones lie beside the checkpoint" in before
    assert card.startswith("---\nlibrary_name: cir-lightning\n")
    assert "base_model" not in card  # which is an id on the hub, and not a folder of ours
    assert str(tmp_path) not in card
    for words in (
        "12.5",
        "a note",
        "data_modules.shoes.Shoes in batches of 7",
        "LoRA of rank 4",
        'load("mine")',
        "`{image}{soft} Picture`",
    ):
        assert words in card
    assert card.count("12.5") == 1  # what the other checkpoint reached is left out
    later = (run / "test" / "results.json").stat().st_mtime + 9
    os.utime(run / "checkpoints" / "best.ckpt", (later, later))  # training went on
    assert main(["export", str(run), str(tmp_path / "later")]) == 0
    assert "12.5" not in (tmp_path / "later" / "README.md").read_text()
    assert "/home/me" not in card + (tmp_path / "mine" / "config.yaml").read_text()


# ---- mistakes ------------------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_mistakes(run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").touch()
    assert f"{tmp_path / 'there'} exists already; name another folder, or remove it" in refused(capsys, run, tmp_path / "there")
    assert "no weights at 'nowhere'" in refused(capsys, "nowhere", tmp_path / "mine")
    assert "the following arguments are required: folder" in refused(capsys, run)
    assert "cannot write /dev/null" in refused(capsys, run, "/dev/null/mine")
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    (tmp_path / "there" / "thesis.tex").unlink()
    assert main(["export", str(run), str(tmp_path / "there")]) == 0  # an empty folder is as good as none
    assert (tmp_path / "there" / "README.md").is_file()


def test_nothing_is_merged_into_packed_weights(tmp_path, capsys):
    run = write_run(tmp_path / "run", write_lvlm("llava", tmp_path / "base", **PACKABLE), quantisation="nf4")
    assert "adapters cannot be merged into nf4 weights; leave it out, set quantisation to none in" in refused(
        capsys, run, tmp_path / "mine", "--merge"
    )


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b"\x00" * 99), Path.unlink])
@pytest.mark.parametrize("name", ["modules.safetensors", "adapter_model.safetensors", "config.yaml"])
def test_a_damaged_export(name, spoil, tmp_path, capsys):
    run = write_run(tmp_path / "run", write_lvlm("llava", tmp_path / "base"))
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    spoil(tmp_path / "mine" / name)
    with pytest.raises(UserError):
        load(tmp_path / "mine")


@pytest.mark.parametrize("name", ["modules.safetensors", "adapter_model.safetensors"])
def test_a_flipped_bit_is_no_other_model(exported, name, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[-5] ^= 1  # of one weight: safetensors itself reads it
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: damaged, its checksum is not the one in config\.yaml; copy the folder again"):
        load(copy)


def test_help_is_light(capsys):
    assert main(["export", "--help"]) == 0
    assert "--merge" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj.lora_A.default.weight", "layers.1.mlp.lora_magnitude_vector.default.weight"])
def test_names_go_both_ways(name):
    assert from_peft(to_peft(f"a.llm.{name}", "a.llm."), "a.llm.") == f"a.llm.{name}"


SPOILT = [  # key in config.yaml, value, message
    ("tower", 5, "tower is missing or of another type; export the model again"),
    ("llm", None, "llm is missing or of another type"),
    ("base", [], "base is missing or of another type"),
    ("base.revision", "main", "not what cir export wrote"),
    ("base.revision.key", 7, r"base\.revision is missing or of another type"),
    ("merged", ["model", "colour"], "not what cir export wrote"),
    ("checks", None, "checks is missing or of another type"),
    ("checks", {"README": 1}, "not what cir export wrote"),
    ("model.encoder", ["a"], "not what cir export wrote"),
    ("model.encoder.class_path", "os.system", "the config that comes with the weights names os.system"),
    ("model.encoder.init_args.connector", None, "describes no encoder that this version can make"),
    ("model.encoder.init_args.width", "wide", "describes no encoder that this version can make"),
    ("model.encoder.init_args.width", -1, r"model\.encoder\.width=-1 is not possible; set it to 1 or more, or to null"),
    ("model.encoder.init_args.backbone.init_args.image_size", -1, r"backbone\.image_size=-1 is not possible; set it to 1 or more"),
    ("data", "shoes", "the config in this file is damaged"),
    ("data.init_args", ["pad"], "the config in this file is damaged"),
    ("data.init_args", None, None),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    run = write_run(folder / "run", write_lvlm("llava", folder / "base"))
    assert main(["export", str(run), str(folder / "mine")]) == 0
    return folder / "mine"


@pytest.mark.parametrize(("key", "value", "message"), SPOILT)
def test_a_config_that_was_spoilt(exported, tmp_path, key, value, message):
    copy = shutil.copytree(exported, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    *path, last = key.split(".")
    reduce(lambda part, name: part[name], path, config)[last] = value
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=message) if message else nullcontext() as refusal:
        load(copy)
    assert not message or str(copy) in str(refusal.value)
