"""``cir export`` of every kind of backbone: what is loaded back is the same model, and its base model is named and pinned."""

import shutil
from functools import partial

import pytest
import torch
import yaml
from fakes import qwen
from fakes.composed import save_llm, save_tower
from fakes.lvlms import SIDE, write_lvlm
from fakes.runs import vectors, write_run
from fakes.texts import write_text
from PIL import Image

from cir_lightning import load
from cir_lightning.api import Retriever, make_encoder, restore
from cir_lightning.backbones import qwen_vl
from cir_lightning.backbones.hf import FAMILIES, HFLVLM
from cir_lightning.backbones.qwen_vl_convert import convert
from cir_lightning.cli import main
from cir_lightning.loss import InfoNCE
from cir_lightning.module import CIRModule
from cir_lightning.weights import find_weights, read_weights
from data_modules.errors import UserError


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 20).convert("RGB").save(path)
    return path


def clip(folder):
    lora = {"rank": 4, "targets": ["q_proj", "v_proj"]}
    return "text.HFTextEncoder", {"model": str(write_text("clip", folder)), "dtype": "float32", "lora": lora}


def blip2_text(folder):
    lora = {"rank": 4, "targets": ["query", "value"]}
    return "text.HFTextEncoder", {"model": str(write_text("blip-2", folder)), "dtype": "float32", "lora": lora}


def mini_lm(folder):
    return "text.MiniLMEncoder", {"lora": {"rank": 4, "targets": ["query", "value"]}}


def llava_with_vision_adapters(folder):
    lora = {"rank": 4, "targets": ["q_proj", "v_proj"]}
    base = str(write_lvlm("llava", folder))
    return "hf.HFLVLM", {"model": base, "dtype": "float32", "image_size": SIDE, "lora": lora, "vision_lora": lora}


def family(name, folder):
    targets = ["q_proj", "v_proj", "fc1"] if name == "blip-2" else ["q_proj", "v_proj", "up_proj"]
    lora = {"rank": 4, "targets": targets}
    return "hf.HFLVLM", {"model": str(write_lvlm(name, folder)), "dtype": "float32", "image_size": SIDE, "lora": lora}


@pytest.mark.parametrize("kind", [clip, blip2_text, mini_lm, llava_with_vision_adapters])
def test_the_export_is_the_run(kind, picture, tmp_path):
    run = write_run(tmp_path / "run", *kind(tmp_path / "base"))
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()
    assert torch.equal(vectors(load(tmp_path / "mine"), picture), vectors(load(run), picture))
    config, card = ((tmp_path / "mine" / name).read_text() for name in ("config.yaml", "README.md"))
    if (tmp_path / "base").exists():
        (base,) = yaml.safe_load(config)["base"].values()
        assert base["model"] == str(tmp_path / "base")
        assert base["key"] in card


def composed(folder):
    save_tower("siglip", folder / "tower")
    save_llm("qwen3", folder / "llm")
    parts = {"vision": str(folder / "tower"), "llm": str(folder / "llm")}
    return "composed.ComposedLVLM", {**parts, "dtype": "float32", "lora": {"rank": 4}}


def qwen_vl_chat(folder):
    convert(qwen.checkpoint(folder / "source"), folder / "converted")
    return "qwen_vl.QwenVLChat", {"folder": str(folder / "converted"), "image_size": 16, "dtype": "float32", "lora": {"rank": 4}}


def mini(folder):
    return "mini.MiniLVLM", {"layers": 2, "image_size": 64, "grid": 2, "lora": {"rank": 4}}


@pytest.fixture
def tiny_heads(monkeypatch):
    monkeypatch.setattr(qwen_vl, "HEAD", qwen.HEAD)


@pytest.mark.parametrize(
    ("kind", "unneeded"),
    [
        (llava_with_vision_adapters, "."),
        (composed, "llm"),
        (qwen_vl_chat, "converted"),
        (mini, "."),
        *((partial(family, name), ".") for name in FAMILIES),
    ],
    ids=lambda value: value.args[0] if isinstance(value, partial) else None,
)
def test_merged_it_does_without_the_base(kind, unneeded, picture, tiny_heads, tmp_path, converted, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(converted))
    run = write_run(tmp_path / "run", *kind(tmp_path / "base"))
    before = vectors(load(run), picture)
    assert main(["export", str(run), str(tmp_path / "mine"), "--merge"]) == 0
    shutil.rmtree(tmp_path / "base" / unneeded, ignore_errors=True)
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    merged = load(tmp_path / "elsewhere")
    torch.testing.assert_close(vectors(merged, picture), before, atol=2e-3 if "vision" in str(kind) else 1e-5, rtol=0)
    assert not any("lora_" in name for name, _ in merged.encoder.named_parameters())
    assert "merged into the base model in the folder `merged`" in (tmp_path / "elsewhere" / "README.md").read_text()
    assert main(["export", str(tmp_path / "elsewhere"), str(tmp_path / "again")]) == 2  # it is whole as it is


def test_a_merged_export_that_lost_a_file_or_was_changed_is_refused(tmp_path):
    name, options = composed(tmp_path / "base")
    assert main(["export", str(write_run(tmp_path / "run", name, options)), str(tmp_path / "mine"), "--merge"]) == 0
    file = tmp_path / "mine" / "merged" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"mine: was trained on the base model 'qwen3-.*/merged' is here 'qwen3-"):
        load(tmp_path / "mine")
    file.unlink()
    with pytest.raises(UserError, match="mine: was trained on the base model"):
        load(tmp_path / "mine")


@pytest.mark.parametrize("kind", [clip, blip2_text, mini_lm])
def test_text_encoders_are_not_merged(kind, tmp_path, capsys):
    run = write_run(tmp_path / "run", *kind(tmp_path / "base"))
    assert main(["export", str(run), str(tmp_path / "mine"), "--merge"]) == 2
    assert "TextEncoder cannot be read from" in (error := capsys.readouterr().err) or "MiniLMEncoder cannot be read from" in error
    assert not (tmp_path / "mine").exists()


def test_another_llm_than_that_of_the_run_is_refused(tmp_path):
    """Its vision tower is the same, so the key of the tower does not tell."""
    run = write_run(tmp_path / "run", *composed(tmp_path / "base"))
    save_llm("llama", tmp_path / "base" / "llm")
    with pytest.raises(UserError, match=r"run: was trained on the base model 'qwen3-.*, but '.*/llm' is here 'llama-"):
        load(run)
    assert main(["export", str(run), str(tmp_path / "mine")]) == 2
    module = CIRModule(make_encoder(read_weights(find_weights(str(run)))[2]), InfoNCE(), monitor="any", init_from=str(run))
    with pytest.raises(UserError, match=r"best\.ckpt: was trained on the base model 'qwen3-.*, but '.*/llm' is here 'llama-"):
        module.configure_model()


def test_an_export_is_what_a_run_may_start_from_but_no_checkpoint(tmp_path, capsys):
    run = write_run(tmp_path / "run", *composed(tmp_path / "base"))
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    state, _, config = read_weights(find_weights(str(run)))
    module = CIRModule(make_encoder(config), InfoNCE(), monitor="any", init_from=str(tmp_path / "mine"))
    module.configure_model()
    loaded = module.state_dict()
    assert [name for name, tensor in state.items() if not torch.equal(loaded[name], tensor)] == []
    for command in ("fit", "test", "predict"):
        assert main([command, "--ckpt_path", str(tmp_path / "mine")]) == 2
        assert f"give the run folder, or a config of the same encoder and --model.init_from {tmp_path / 'mine'}" in capsys.readouterr().err


def test_weights_that_a_connector_started_from_are_not_needed(picture, tiny_heads, tmp_path):
    convert(qwen.checkpoint(tmp_path / "source"), tmp_path / "start")
    start = {"class_path": "cir_lightning.backbones.qwen_vl.QwenResampler", "init_args": {"folder": str(tmp_path / "start"), "queries": 16}}
    run = write_run(tmp_path / "run", *qwen_vl_chat(tmp_path / "base"), connector=start)
    before = vectors(load(run), picture)
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    shutil.rmtree(tmp_path / "start")
    assert torch.equal(vectors(load(tmp_path / "mine"), picture), before)


# ---- quantisation --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trained", "used"), [("nf4", "none"), ("int8", "none"), ("none", "nf4"), ("nf4", "int8")])
def test_adapters_go_with_another_quantisation_of_the_same_base(trained, used, picture, tmp_path):
    base = write_lvlm("llava", tmp_path / "base", hidden_size=64, intermediate_size=128)  # bitsandbytes wants multiples of 64
    options = {"model": str(base), "dtype": "float32", "image_size": SIDE, "lora": {"rank": 4}}
    run = write_run(tmp_path / "run", "hf.HFLVLM", options | {"quantisation": trained})
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    card = (tmp_path / "mine" / "README.md").read_text()
    assert (f"trained over {trained} weights; `quantisation: none` in config.yaml" in card) is (trained != "none")
    file = tmp_path / "mine" / "config.yaml"
    file.write_text(file.read_text().replace(f"quantisation: {trained}", f"quantisation: {used}"))
    with pytest.warns(UserWarning, match=rf"mine: trained over .* with quantisation='{trained}' and now used with '{used}', whose weights"):
        model = load(tmp_path / "mine")
    expected = make_encoder(yaml.safe_load(file.read_text()))  # the other base, and then the adapters
    restore(expected, read_weights(find_weights(str(run)))[0], model.encoder.tower.key, "expected")
    assert torch.equal(vectors(model, picture), vectors(Retriever(expected, "pad"), picture))
    if used == "none":
        with pytest.warns(UserWarning, match="now used with 'none'"):
            assert main(["export", str(tmp_path / "mine"), str(tmp_path / "merged"), "--merge"]) == 0
        torch.testing.assert_close(vectors(load(tmp_path / "merged"), picture), vectors(model, picture), atol=1e-5, rtol=0)


def test_a_tower_is_the_same_whatever_the_quantisation(tmp_path):
    base = write_lvlm("qwen3_vl", tmp_path / "base", hidden_size=64, intermediate_size=128)
    pixels = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    towers = []
    for quantisation in ("none", "nf4", "int8"):
        lvlm = HFLVLM(str(base), dtype="float32", image_size=SIDE, quantisation=quantisation)
        lvlm.build()
        towers += [(lvlm.tower.key, lvlm.vision.key, lvlm.tower(pixels), lvlm.vision(pixels))]
    assert len({(patches, tokens) for patches, tokens, *_ in towers}) == 1
    assert all(torch.equal(a, b) for other in towers[1:] for a, b in zip(towers[0][2:], other[2:], strict=True))
