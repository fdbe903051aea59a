"""Packed sequences against the same ones alone."""

import doctest
import random

import pytest
import torch
import transformers
from fakes.build import built_encoder, random_features
from fakes.tiny import TinyLVLM

import cir_lightning.packing
from cir_lightning.backbones.lora import LoRA
from cir_lightning.packing import alike, can_pack, hidden_states, layout, padding

SMALL = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
}


def batch(lengths, width=64):
    """Random embeddings, not a number at padding, and their mask."""
    embeds = torch.full((len(lengths), max(lengths), width), torch.nan)
    mask = torch.zeros(embeds.shape[:2], dtype=torch.long)
    for row, length in enumerate(lengths):
        embeds[row, :length], mask[row, :length] = torch.randn(length, width), 1
    return embeds, mask


@pytest.mark.parametrize(
    "lengths", [[1], [7], [3, 1, 2], [130, 2, 2], [20, 20, 20, 20, 20, 20, 20], random.Random(0).choices(range(5, 60), k=64)]
)
def test_every_sequence_lies_in_one_piece_and_rows_are_filled_evenly(lengths):
    place, number, position = layout(lengths)
    width = number.shape[1]
    at = iter(place.tolist())
    for which, length in enumerate(lengths):
        taken = [next(at) for _ in range(length)]
        assert taken == list(range(taken[0], taken[0] + length))
        assert taken[0] // width == taken[-1] // width
        assert number.flatten()[taken].tolist() == [which] * length
        assert position.flatten()[taken].tolist() == list(range(length))
    assert next(at, None) is None
    assert (number >= 0).sum() == sum(lengths)
    assert width <= max(max(lengths), sum(lengths) / len(number) + max(lengths))


@pytest.mark.parametrize("count", [16, 32, 64, 128, 512])
def test_little_is_wasted(count):
    """Lengths as captions have them: at most 2 % padding, where padding to the longest wastes a quarter or more."""
    draw = random.Random(count)
    lengths = [min(60, 14 + int(draw.gammavariate(4, 3))) for _ in range(count)]
    number = layout(lengths).number
    assert 1 - sum(lengths) / number.numel() < 0.02
    assert 1 - sum(lengths) / (count * max(lengths)) > 0.25


@pytest.mark.parametrize("waste", [0.02, 0.05, 0.3])
def test_groups_of_like_length_waste_little(waste):
    draw = random.Random(4)
    lengths = [264 + min(60, 5 + int(draw.gammavariate(4, 3))) for _ in range(64)]
    groups = alike(lengths, waste)
    assert sorted(which for group in groups for which in group) == list(range(64))
    for group in groups:
        longest = max(lengths[which] for which in group)
        assert 1 - sum(lengths[which] for which in group) / (longest * len(group)) <= waste
    spread = 1 - min(lengths) / max(lengths)
    assert len(groups) <= 1 + spread / waste


def test_padding_is_a_share():
    assert padding(torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])) == 0.5


@pytest.mark.parametrize("lengths", [[9, 5, 1], [40, 90, 30, 12, 77, 5]])
def test_hidden_states_are_those_of_each_sequence_alone(lengths):
    lvlm = TinyLVLM(LoRA(4))
    lvlm.build()
    embeds, mask = batch(lengths)
    with torch.no_grad():
        packed = hidden_states(lvlm.llm, embeds, mask)
        for row, length in enumerate(lengths):
            alone = lvlm.llm(inputs_embeds=embeds[row : row + 1, :length]).last_hidden_state
            torch.testing.assert_close(packed[row : row + 1, :length], alone, atol=1e-5, rtol=0)
            assert not packed[row, length:].any()


def test_gradients_are_those_of_padding():
    lvlm = TinyLVLM(LoRA(4))
    lvlm.build()
    embeds, mask = batch([9, 5, 1])
    gradients = []
    for run in (hidden_states, lambda llm, embeds, mask: llm(inputs_embeds=embeds, attention_mask=mask).last_hidden_state):
        given = embeds.nan_to_num().requires_grad_()
        weight = torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(0)) * mask[..., None]
        (run(lvlm.llm, given, mask) * weight).sum().backward()
        gradients.append([given.grad, *(p.grad.clone() for p in lvlm.llm.parameters() if p.requires_grad)])
        lvlm.zero_grad()
    assert len(gradients[0]) > 1
    for ours, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, padded, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen3", "Gemma2", "Gemma3Text", "GPTNeoX", "Phi3", "OPT", "GPT2"])
def test_causal_language_models_can_pack(kind):
    assert can_pack(small(kind))


@pytest.mark.parametrize("kind", ["Bert", "Bloom", "Mamba", "Qwen3Next", "RecurrentGemma", "Jamba"])
def test_models_whose_packed_sequences_would_see_each_other_do_not(kind):
    model = small(kind).train()
    assert not can_pack(model)
    assert model.training


def small(kind, **options):
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200} if kind in {"Bloom", "GPT2"} else SMALL
    sizes = {**sizes, "word_embed_proj_dim": 64, "ffn_dim": 96} if kind == "OPT" else sizes
    return transformers.AutoModel.from_config(getattr(transformers, f"{kind}Config")(**sizes, **options)).eval()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Gemma3Text", {"sliding_window": 10, "layer_types": ["sliding_attention", "full_attention"]}),
        ("Mistral", {"sliding_window": 10}),
        ("Phi3", {"sliding_window": 10}),
        ("Qwen2", {"sliding_window": 10, "use_sliding_window": True, "max_window_layers": 0}),
        ("Llama4Text", {"attention_chunk_size": 10, "num_local_experts": 2, "head_dim": 16, "intermediate_size_mlp": 96}),
    ],
)
@pytest.mark.parametrize("lengths", [[10, 3, 5], [14, 3, 5, 12]])
def test_sequences_longer_than_a_window_of_attention_get_what_they_get_alone(kind, options, lengths):
    lvlm = TinyLVLM()
    lvlm.llm = small(kind, **options)
    lvlm.packs = can_pack(lvlm.llm)
    assert lvlm.packs
    embeds, mask = batch(lengths)
    rows = []
    lvlm.llm.register_forward_pre_hook(lambda _, __, given: rows.append(len(given["inputs_embeds"])), with_kwargs=True)
    with torch.no_grad():
        together = lvlm.run(embeds.nan_to_num(), mask)
        for row, length in enumerate(lengths):
            alone = lvlm.llm(inputs_embeds=embeds[row : row + 1, :length]).last_hidden_state
            torch.testing.assert_close(together[row : row + 1, :length], alone, atol=1e-5, rtol=0)
    assert (rows[0] == 1) is (max(lengths) <= 10)


def test_without_weights_nothing_is_tried():
    with torch.device("meta"):
        assert not can_pack(small("Llama"))


def test_the_encoder_packs_queries_of_different_lengths_and_not_targets():
    encoder = built_encoder().eval()
    shapes = []
    encoder.backbone.llm.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    captions = ["red", "as a circle in blue but as a bar in pink and brown and cyan as a cross in green", "but red", "in a green"]
    with torch.no_grad():
        sight = encoder.see(random_features(4))
        together = encoder.encode_query(sight, captions)
        alone = torch.cat([encoder.encode_query(sight.at(torch.tensor([at])), [caption]) for at, caption in enumerate(captions)])
        encoder.encode_target(sight)
    lengths = [length for _, length in shapes[1:5]]
    assert shapes[0] == (1, sum(lengths))
    assert shapes[5][0] == 4
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(cir_lightning.packing, extraglobs={"torch": torch})
    assert (result.attempted, result.failed) == (3, 0)
