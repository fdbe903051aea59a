"""Qwen-VL-Chat at tiny size computes what the original modelling code computed; how its tensors were made: ``fakes.qwen``."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from fakes import qwen

from cir_lightning.backbones import qwen_vl
from cir_lightning.backbones.lora import LoRA
from cir_lightning.backbones.qwen_vl import QwenResampler, QwenVLChat
from cir_lightning.backbones.qwen_vl_convert import convert
from cir_lightning.connector import Resampler
from cir_lightning.encoder import IntentEncoder
from cir_lightning.prompt_pool import NoPrompt
from data_modules.errors import UserError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", autouse=True)
def tiny_heads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen_vl, "HEAD", qwen.HEAD)
        yield


@pytest.fixture(scope="module", params=["bin", "safetensors"])
def folder(request, tmp_path_factory, tiny_heads):
    """Converted from shards of either kind."""
    root = tmp_path_factory.mktemp(request.param)
    convert(qwen.checkpoint(root / "source", kind=request.param), root / "converted")
    return root / "converted"


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory, tiny_heads):
    root = tmp_path_factory.mktemp("one")
    convert(qwen.checkpoint(root / "source"), root / "converted")
    return root / "converted"


@pytest.fixture(scope="module")
def golden():
    return qwen.golden()[0]


def built(folder, side=16, **options):
    lvlm = QwenVLChat(str(folder), image_size=side, **({"dtype": "float32"} | options))
    lvlm.build()
    return lvlm


@pytest.mark.parametrize("side", [16, 24, 64])  # positions of the ViT interpolated but for 64, of the resampler but for 16
@torch.no_grad()
def test_pictures_of_three_sides(folder, golden, side):
    lvlm = built(folder, side)
    features = lvlm.tower.features(golden[f"pixels.{side}"])
    tokens = lvlm.vision.resampler(features)
    if f"features.{side}" in golden:
        torch.testing.assert_close(features, golden[f"features.{side}"], **CLOSE)
    torch.testing.assert_close(tokens, golden[f"tokens.{side}"], **CLOSE)
    rounded = {lvlm.tower: golden.get(f"features.{side}", features), lvlm.vision: golden[f"tokens.{side}"]}
    for tower, expected in rounded.items():
        out = tower(golden[f"pixels.{side}"])
        assert (out.dtype, out.shape) == (torch.float16, (len(expected), tower.patches, tower.width))
        torch.testing.assert_close(out.float(), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_hidden_states_of_text_and_of_a_picture_between_its_marks(folder, golden):
    lvlm = built(folder)
    text = lvlm.llm(input_ids=golden["text_ids"]).last_hidden_state
    torch.testing.assert_close(text, golden["text_hidden"], **CLOSE)
    embeds = lvlm.llm.get_input_embeddings()(golden["ids"])
    start = golden["ids"][0].tolist().index(lvlm.tokenizer.convert_tokens_to_ids("<img>")) + 1
    assert (golden["ids"][:, start + 16] == lvlm.tokenizer.convert_tokens_to_ids("</img>")).all()
    embeds[:, start : start + 16] = lvlm.vision.resampler(lvlm.tower.features(golden["pixels.16"]))
    hidden = lvlm.llm(inputs_embeds=embeds, attention_mask=golden["mask"]).last_hidden_state
    real = golden["mask"].bool()
    assert not real.all()
    torch.testing.assert_close(hidden[real], golden["hidden"][real], **CLOSE)


def test_the_head_is_in_the_folder_for_generation(one_folder, golden):
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(one_folder / "llm")
    assert torch.equal(model.lm_head.weight, golden["state.lm_head.weight"].float())
    assert model.dtype == torch.float32


def test_positions_are_the_checkpoints_own(golden):
    torch.testing.assert_close(qwen_vl.sincos_positions(4, 40), golden["pos_embed"], rtol=0, atol=1e-6)
    assert qwen_vl.resize_positions(golden["pos_embed"], 16) is golden["pos_embed"]


def test_the_connector_starts_as_the_native_one_and_trains(one_folder, golden):
    connector = QwenResampler(str(one_folder), queries=16)
    connector.build(32, 16, 40)
    tokens = connector(golden["features.16"])
    torch.testing.assert_close(tokens, golden["tokens.16"], **CLOSE)
    torch.testing.assert_close(connector(golden["features.16"].half()), golden["tokens.16"], rtol=1e-2, atol=1e-2)
    (tokens * torch.randn_like(tokens)).sum().backward()
    trained = {name: p for name, p in connector.named_parameters() if p.requires_grad}
    assert "pos_embed" not in trained
    assert len(trained) == 13
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in trained.values())
    assert {p.dtype for p in trained.values()} == {torch.float32}


def test_the_connector_from_random_weights():
    torch.manual_seed(0)
    connector = QwenResampler(queries=9)
    connector.build(32, 36, 40)
    tokens = connector(torch.randn(2, 36, 32))
    assert tokens.shape == (2, 9, 40)
    assert 0.1 < float(tokens.detach().std()) < 10
    assert QwenResampler.native


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_learns_over_a_bfloat16_base(one_folder, golden, checkpointing):
    lvlm = built(one_folder, dtype="bfloat16", lora=LoRA(rank=2), gradient_checkpointing=checkpointing).train()
    trained = {name: p for name, p in lvlm.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2
    assert {p.dtype for p in trained.values()} == {torch.float32}
    for name, p in trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    assert {p.dtype for name, p in lvlm.named_parameters() if name not in trained} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        for ids in (golden["text_ids"], golden["ids"]):  # a query and a target pass of one step
            embeds = lvlm.llm.get_input_embeddings()(ids)
            lvlm.llm(inputs_embeds=embeds).last_hidden_state.float().pow(2).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in trained.values())


def test_it_encodes_queries_and_targets(one_folder, golden):
    torch.manual_seed(0)
    encoder = IntentEncoder(
        QwenVLChat(str(one_folder), image_size=16, dtype="float32"),
        Resampler(queries=2, width=16, heads=2),
        soft_prompt=NoPrompt(),
        query_template="<|im_start|>user\n<img>{image}</img> Edit: {caption}<|im_end|>",
        target_template="<img>{image}</img>",
        width=8,
    )
    encoder.build()
    sight = encoder.see(encoder.tower(golden["pixels.16"]))
    queries, targets = encoder.encode_query(sight, ["longer", "the red dress"]), encoder.encode_target(sight)
    for vectors in (queries, targets):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


def test_keys_tell_side_dtype_and_kind_apart(one_folder):
    towers = [built(one_folder), built(one_folder, 24), built(one_folder, dtype="bfloat16")]
    assert len({tower.key for lvlm in towers for tower in (lvlm.tower, lvlm.vision)}) == 6


@pytest.mark.parametrize(
    ("options", "build", "message"),
    [
        ({"queries": 8}, None, r"connector\.queries=8 is no square number"),
        ({}, (32, 16, 44), r"a multiple of 10, and this one's is 44; use Resampler"),
        ({}, (32, 15, 40), r"a square of patches, and this vision tower has 15"),
        ({"folder": True}, (32, 16, 40), r"connector\.safetensors: query is \(16, 40\), and .*queries=256 need \(256, 40\)"),
        ({"folder": True, "queries": 16}, (24, 16, 40), r"kv_proj\.weight is \(40, 32\), and .* need \(40, 24\)"),
    ],
)
def test_a_connector_that_does_not_fit(one_folder, options, build, message):
    if "folder" in options:
        options = options | {"folder": str(one_folder)}
    with pytest.raises(UserError, match=message):
        QwenResampler(**options).build(*build)


@pytest.mark.parametrize("side", [0, 15, -16])
def test_a_side_that_is_no_multiple_of_a_patch(one_folder, side):
    with pytest.raises(UserError, match=rf"backbone\.image_size={side} is no multiple of the patch side 4; set 448"):
        built(one_folder, side)


def test_folders_that_are_no_conversion(one_folder, tmp_path):
    with pytest.raises(UserError, match="holds no finished conversion of Qwen-VL-Chat; make it, or finish it, with cir convert"):
        built(tmp_path / "none")
    with pytest.raises(UserError, match="no finished conversion"):
        built(qwen.checkpoint(tmp_path / "source"))  # the download itself
    copy = shutil.copytree(one_folder, tmp_path / "copy")
    about = json.loads((copy / "config.json").read_text())
    sizes = [about["vision"] | {"width": width} for width in ("32", 32.5, 0, -1)]
    for spoilt in ([], {"format": 1}, *(about | {"vision": vision} for vision in (*sizes, {})), about | {"files": {"a": 1}}):
        (copy / "config.json").write_text(json.dumps(spoilt))
        with pytest.raises(UserError, match="no finished conversion"):
            built(copy)
    (copy / "config.json").write_text(json.dumps(about | {"vision": about["vision"] | {"layers": 3}}))
    with pytest.raises(UserError, match=r"vision\.safetensors does not fit the config\.json beside it; run cir convert qwen-vl-chat again"):
        built(copy)
    (copy / "config.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(UserError, match=r"config\.json: format 99, and this version reads 1; convert the checkpoint again into another"):
        built(copy)


@pytest.mark.parametrize("name", ["vision.safetensors", "llm/model-00001-of-00001.safetensors", "llm/tokenizer.json"])
@pytest.mark.parametrize("harm", ["cut", "remove"])
def test_damaged_files_are_named(one_folder, tmp_path, name, harm):
    copy = shutil.copytree(one_folder, tmp_path / "copy")
    file = copy / name
    file.write_bytes(file.read_bytes()[:500]) if harm == "cut" else file.unlink()
    with pytest.raises(UserError, match=rf"{copy}/(llm|{name})\b.*; run cir convert qwen-vl-chat again"):
        built(copy)
