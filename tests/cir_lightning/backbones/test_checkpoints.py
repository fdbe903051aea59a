"""Weights that bitsandbytes packs, in training and in evaluation."""

import pytest
import torch
from fakes.lvlms import SIDE, write_lvlm

from cir_lightning.backbones.hf import HFLVLM
from cir_lightning.backbones.lora import LoRA


@pytest.mark.parametrize("quantisation", ["nf4", "int8"])
def test_a_validation_leaves_the_gradients_as_they_were(quantisation, tmp_path, caplog):
    folder = write_lvlm("llava", tmp_path, hidden_size=64, intermediate_size=128)
    lvlm = HFLVLM(str(folder), image_size=SIDE, quantisation=quantisation, lora=LoRA(4))
    lvlm.build()
    embeds, mask = torch.randn(2, 5, 64), torch.ones(2, 5, dtype=torch.long)

    def gradient():
        lvlm.train()
        given = embeds.clone().requires_grad_()
        lvlm.read(given, mask, mask > 1, None).float().pow(3).sum().backward()
        return given.grad

    before = gradient()
    with torch.no_grad():
        lvlm.eval().read(embeds, mask, mask > 1, None)
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)
    assert not caplog.records  # bitsandbytes has a line for every product
