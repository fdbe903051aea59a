"""Backbones on torch's meta device: the same shapes as the real ones, from a configuration alone."""

import pytest
import torch
from fakes.lvlms import SIDE, SQUARE, TEXT, tiny_config, write_lvlm
from transformers import LlamaConfig, SiglipVisionConfig

from cir_lightning.backbones.checkpoints import Checkpoint
from cir_lightning.backbones.combiner import Combiner
from cir_lightning.backbones.composed import ComposedLVLM
from cir_lightning.backbones.hf import FAMILIES, HFLVLM
from cir_lightning.backbones.lora import LoRA
from cir_lightning.backbones.mini import MiniLVLM
from cir_lightning.backbones.skeleton import CountingTokenizer
from cir_lightning.template import Template
from data_modules.errors import UserError


def on_meta(backbone):
    with torch.device("meta"):
        backbone.build()
    assert {tensor.device.type for tensor in backbone.parameters()} == {"meta"}
    return backbone


def tensors(backbone):
    return {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in backbone.named_parameters()}


@pytest.mark.parametrize(("family", "views"), [*((family, 0) for family in FAMILIES), ("llava_next", 1), ("llava_next", 2)])
def test_a_configuration_alone_gives_the_shapes_of_the_real_model(family, views, tmp_path):
    options = {"dtype": "bfloat16", "image_size": (views or 1) * SIDE, "tiles": views > 0, "lora": LoRA(rank=2, targets=("q_proj",))}
    real = HFLVLM(str(write_lvlm(family, tmp_path / "real")), **options)
    real.build()
    tiny_config(family).save_pretrained(tmp_path / "config")
    meta = on_meta(HFLVLM(str(tmp_path / "config"), **options))
    for mine, its in ((meta.tower, real.tower), (meta.vision, real.vision)):
        assert (mine.patches, mine.width) == (its.patches, its.width)
    assert tensors(meta) == tensors(real)


@pytest.mark.parametrize("make", [lambda: MiniLVLM(2, lora=LoRA()), Combiner])
def test_the_embedded_models_too(make, converted, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(converted))
    real = make()
    real.build()
    assert tensors(on_meta(make())) == tensors(real)


def test_a_tokenizer_without_words_is_refused(tmp_path):
    tiny_config("qwen2_5_vl").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"cannot read a tokenizer of '.*': it knows no words, so files are missing; get them again"):
        Checkpoint(str(tmp_path)).tokenizer()
    with torch.device("meta"):
        assert len(Checkpoint(str(tmp_path)).tokenizer()(["one two three"])["input_ids"][0]) == 4


def test_a_composed_model(tmp_path):
    SiglipVisionConfig(**SQUARE).save_pretrained(tmp_path / "eyes")
    LlamaConfig(**TEXT).save_pretrained(tmp_path / "words")
    composed = on_meta(ComposedLVLM(str(tmp_path / "eyes"), str(tmp_path / "words"), lora=LoRA(rank=2)))
    assert (composed.tower.patches, composed.tower.width, composed.width) == (16, 32, 48)


def test_a_chat_without_a_tokenizer():
    chat = Template("{image} Edit: {caption}", "key").in_chat(CountingTokenizer())
    assert (chat.text, chat.answer) == ("<|user|> {image} Edit: {caption} <|end|>", " <|assistant|>")
