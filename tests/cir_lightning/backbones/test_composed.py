"""Vision towers and LLMs by their folders, against their own forward passes."""

import pytest
import torch
import transformers
from fakes.composed import LLMS, SIZE, TOWERS, save_llm, save_tower
from fakes.lvlms import SIDE

from cir_lightning.backbones.composed import ComposedLVLM
from cir_lightning.backbones.lora import LoRA
from cir_lightning.connector import Resampler
from cir_lightning.encoder import IntentEncoder
from cir_lightning.prompt_pool import NoPrompt
from data_modules.errors import UserError


@pytest.fixture
def parts(tmp_path):
    save_tower("siglip", tmp_path / "vision")
    save_llm("llama", tmp_path / "llm")
    return {"vision": str(tmp_path / "vision"), "llm": str(tmp_path / "llm"), "dtype": "float32"}


def pixels(count=2):
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TOWERS)
def test_patch_features_are_the_towers_last_hidden_states(name, parts, tmp_path):
    model, processor, before = save_tower(name, tmp_path / "other")
    lvlm = ComposedLVLM(**{**parts, "vision": str(tmp_path / "other")})
    lvlm.build()
    given = processor(images=[image.permute(1, 2, 0).numpy() for image in pixels()], return_tensors="pt")
    with torch.no_grad():
        expected = model(**given).last_hidden_state[:, before:]
    assert expected.shape == (2, lvlm.tower.patches, lvlm.tower.width)
    torch.testing.assert_close(lvlm.tower(pixels()), expected.half(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", LLMS)
def test_it_reads_as_the_llm_does(name, parts, tmp_path):
    model = save_llm(name, tmp_path / "other")
    lvlm = ComposedLVLM(**{**parts, "llm": str(tmp_path / "other")})
    lvlm.build()
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 10, 2, 2]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        expected = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        found = lvlm.read(lvlm.llm.get_input_embeddings()(ids), mask, mask > 1, None)
    torch.testing.assert_close(found * mask[..., None], expected * mask[..., None], atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_reaches_every_trained_parameter(parts, checkpointing):
    backbone = ComposedLVLM(**parts, lora=LoRA(4), gradient_checkpointing=checkpointing)
    encoder = IntentEncoder(backbone, Resampler(4, 32, depth=1, heads=4), soft_prompt=NoPrompt(), width=16)
    encoder.build()
    encoder.train()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    sight = encoder.see(encoder.tower(pixels(4)))
    (encoder.encode_query(sight, ["red", "blue", "as a bar", "red"]) * encoder.encode_target(sight).roll(1, 0)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad is ("lora_" in name or not name.startswith("backbone."))
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name


def test_towers_and_llms_that_cannot_be_used(parts, tmp_path):
    transformers.AutoModel.from_config(transformers.ResNetConfig(depths=[1], hidden_sizes=[8], embedding_size=8)).save_pretrained(
        tmp_path / "a"
    )
    transformers.SiglipImageProcessorPil(size=SIZE).save_pretrained(tmp_path / "a")
    with pytest.raises(
        UserError, match=r"vision tower 'resnet-.*' gives a last hidden state of shape .*, no vector per patch; use a vision"
    ):
        ComposedLVLM(**{**parts, "vision": str(tmp_path / "a")}).build()
    transformers.T5Config(num_layers=1, d_model=8).save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match=r"backbone\.llm='.*' is no decoder-only language model; use one, such as Qwen3"):
        ComposedLVLM(**{**parts, "llm": str(tmp_path / "b")}).build()
    with pytest.raises(UserError, match=r"lora\.dora does not work over quantisation='int8'"):
        ComposedLVLM(**parts, quantisation="int8", lora=LoRA(4, dora=True))
