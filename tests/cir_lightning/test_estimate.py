"""The formulas of ``cir estimate`` against what torch really saves and multiplies."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from fakes.lvlms import SIDE, write_lvlm
from fakes.tiny import TinyLVLM
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cir_lightning.backbones.hf import FAMILIES, HFLVLM
from cir_lightning.backbones.lora import LoRA
from cir_lightning.backbones.mini import MiniLVLM
from cir_lightning.connector import QFormer, Resampler
from cir_lightning.encoder import IntentEncoder
from cir_lightning.estimate import (
    Pass,
    Precision,
    activation_bytes,
    layers_of,
    llm_flops,
    packed_bytes,
    quantised_weights,
    saved_bytes,
    sight_cost,
)
from cir_lightning.estimate_report import CAPTION, build_skeleton, sequence_lengths
from cir_lightning.prompt_pool import PromptPool

ATEN = torch.ops.aten
ON_CPU = {  # which torch's counter leaves out
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v),
}
BATCH, LENGTH = 4, 48
OPT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.fixture(scope="module", params=[*FAMILIES, "mini"])
def make(request, tmp_path_factory, converted):
    """Makes a built backbone of a family."""
    family = request.param
    folder = None if family == "mini" else write_lvlm(family, tmp_path_factory.mktemp(family))

    def made(*, lora=True, checkpointing=False, dtype="float32", dropout=0.0):
        options = {"lora": LoRA(rank=4, dropout=dropout) if lora else None, "gradient_checkpointing": checkpointing}
        if folder is None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("CIR_CACHE", str(converted))
                backbone = MiniLVLM(2, **options)
                backbone.build()
        else:
            options["lora"] = options["lora"] and replace(options["lora"], targets=OPT if family == "blip-2" else LoRA.targets)
            backbone = HFLVLM(str(folder), dtype=dtype, image_size=SIDE, **options)
            backbone.build()
        return backbone.train()

    made.family = family
    return made


def reading(backbone, *, autocast=False):
    """A forward pass over random embeddings that want gradients; one sequence is padded."""
    embeds = torch.randn(BATCH, LENGTH, backbone.width, requires_grad=True)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, -3:] = 0

    def read():
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            return backbone.read(embeds, mask, torch.zeros(BATCH, LENGTH, dtype=torch.bool), None)

    return read


def tolerance(family):
    """OPT keeps less than other LLMs: its activation function and its norms have nothing that the adapters do not keep, too."""
    return 0.17 if family == "blip-2" else 0.04


def saved(backbone, **options):
    return saved_bytes(reading(backbone, **options), [*backbone.parameters(), *backbone.buffers()])


@pytest.mark.parametrize("lora", [True, False])
def test_activations_in_float32(make, lora):
    backbone = make(lora=lora)
    formula = activation_bytes(backbone.llm, [Pass(BATCH, LENGTH)], Precision(), checkpointing=False)
    assert saved(backbone) == pytest.approx(formula, rel=tolerance(make.family))


@pytest.mark.parametrize("make", FAMILIES, indirect=True)  # the mini LVLM's base is float32
@pytest.mark.parametrize("autocast", [True, False])
def test_activations_over_a_bfloat16_base(make, autocast):
    backbone = make(dtype="bfloat16")
    formula = activation_bytes(backbone.llm, [Pass(BATCH, LENGTH)], Precision(2, autocast), checkpointing=False)
    assert saved(backbone, autocast=autocast) == pytest.approx(formula, rel=tolerance(make.family))


def test_activations_with_dropout(make):
    backbone = make(dropout=0.1)
    formula = activation_bytes(backbone.llm, [Pass(BATCH, LENGTH)], Precision(), checkpointing=False)
    inputs = sum(part.in_features for part in backbone.llm.modules() if hasattr(part, "base_layer"))
    formula += BATCH * LENGTH * 3 * inputs  # masks are as wide as the numbers on a CPU, and one byte on a GPU
    assert saved(backbone) == pytest.approx(formula, rel=tolerance(make.family))


def test_checkpointing_keeps_the_inputs_of_the_layers(make):
    backbone, one = make(checkpointing=True), Pass(BATCH, LENGTH)
    formula = activation_bytes(backbone.llm, [one], Precision(), checkpointing=True)
    last_norm = one.tokens * 4 * backbone.width
    again = (activation_bytes(make().llm, [one], Precision(), checkpointing=False) - last_norm) / len(layers_of(backbone.llm))
    assert saved(backbone) == pytest.approx(formula - again, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops(make, checkpointing):
    backbone = make(checkpointing=checkpointing)
    formula = llm_flops(backbone.llm, [Pass(BATCH, LENGTH)], checkpointing=checkpointing)
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        hidden = reading(backbone)()
        forward = counter.get_total_flops()
        hidden.sum().backward()
    assert forward == pytest.approx(formula.forward, rel=0.01)
    assert counter.get_total_flops() - forward == pytest.approx(formula.backward + formula.again, rel=0.01)


@pytest.mark.parametrize("connector", [Resampler, QFormer])
def test_a_whole_step_of_queries_and_targets(connector):
    def make():
        return IntentEncoder(
            TinyLVLM(LoRA(rank=4)), connector(4, 64, depth=1, heads=4), soft_prompt=PromptPool(6, 2, chosen=3), width=32, residual=True
        )

    real = make()
    real.build()
    features = torch.randn(2 * BATCH, real.tower.patches, real.tower.width).half()

    def step():
        sight = real.train().see(features)
        queries, targets = torch.arange(BATCH), torch.arange(BATCH, 2 * BATCH)
        return real.encode_query(sight.at(queries), captions), real.encode_target(sight.at(targets))

    skeleton = build_skeleton(make())
    lengths = sequence_lengths(skeleton, caption_words=12)
    captions = [CAPTION] * BATCH
    passes = [Pass(BATCH, length) for length in lengths.values()]
    sight = sight_cost(skeleton)
    formula = activation_bytes(skeleton.backbone.llm, passes, Precision(), checkpointing=False) + 2 * BATCH * sight.bytes
    assert saved_bytes(step, [*real.parameters(), *real.buffers()]) == pytest.approx(formula, rel=0.1)
    flops = llm_flops(skeleton.backbone.llm, passes, checkpointing=False).step + 2 * BATCH * sight.flops
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        sum(vectors.sum() for vectors in step()).backward()
    assert counter.get_total_flops() == pytest.approx(flops, rel=0.03)


@pytest.mark.parametrize("quantisation", ["nf4", "int8"])
def test_packed_weights(quantisation, tmp_path):
    folder = str(write_lvlm("llava", tmp_path, hidden_size=64, intermediate_size=128))
    packed = HFLVLM(folder, quantisation=quantisation)
    packed.build()
    plain = HFLVLM(folder)
    plain.build()
    chosen = quantised_weights(plain.llm, quantisation)
    for name, part in plain.llm.named_modules():
        if isinstance(part, torch.nn.Linear):
            assert id(part.weight) in chosen
            weight = packed.llm.get_submodule(name).weight
            scales = weight.quant_state.absmax if quantisation == "nf4" else weight.SCB
            assert packed_bytes(part.weight, quantisation) == pytest.approx(weight.nbytes + scales.nbytes, abs=4)
