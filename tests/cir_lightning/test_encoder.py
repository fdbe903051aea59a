"""The forward pass on the tiny model."""

import itertools

import pytest
import torch
from fakes.build import built_encoder, random_features, tiny_encoder

from cir_lightning.connector import QFormer, Resampler
from cir_lightning.loss import InfoNCE
from cir_lightning.prompt_pool import NoPrompt, PromptPool, UniversalPrompt
from data_modules.errors import UserError

CAPTIONS = ["but red", "as a circle in blue and a bar", "but brown", "as a square"]
CONNECTORS = {"resampler": lambda: Resampler(4, 32, depth=1, heads=4), "qformer": lambda: QFormer(4, 32, depth=2, heads=4)}
PROMPTS = {"pool": lambda: PromptPool(6, 2, chosen=2), "universal": lambda: UniversalPrompt(3), "none": NoPrompt}


def encode(encoder, features, captions):
    """Queries and targets of the same pictures."""
    sight = encoder.see(features)
    return encoder.encode_query(sight, captions), encoder.encode_target(sight)


@pytest.mark.parametrize("pooling", ["weighted_mean", "mean", "last"])
def test_embeddings_are_float32_unit_vectors(pooling):
    encoder = built_encoder(pooling=pooling, residual=True)
    for vectors in encode(encoder, random_features(4), CAPTIONS):
        assert vectors.dtype == torch.float32
        assert vectors.shape == (4, 32)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4))
        assert torch.pdist(vectors).min() > 1e-3


@pytest.mark.parametrize("pooling", ["weighted_mean", "mean", "last"])
def test_an_embedding_does_not_depend_on_its_batch_mates(pooling):
    encoder = built_encoder(pooling=pooling).eval()
    features = random_features(4)
    with torch.no_grad():
        together = encode(encoder, features, CAPTIONS)
        for i in range(4):
            for all_of_them, alone in zip(together, encode(encoder, features[i : i + 1], CAPTIONS[i : i + 1]), strict=True):
                torch.testing.assert_close(all_of_them[i], alone[0], atol=1e-5, rtol=0)


def test_query_reads_the_caption_and_target_does_not_read_the_query_template():
    encoder = built_encoder().eval()
    features = random_features(2)
    first, target = encode(encoder, features, ["but red", "but red"])
    second, same = encode(encoder, features, ["but red", "but blue"])
    assert torch.equal(target, same)
    torch.testing.assert_close(first[0], second[0], atol=1e-6, rtol=0)
    assert (first[1] - second[1]).abs().max() > 1e-2


def test_the_residual_is_a_linear_map_of_the_mean_features():
    with_it, without = built_encoder(residual=True), built_encoder()
    state = {k: v for k, v in with_it.state_dict().items() if not k.startswith("residual.")}
    without.load_state_dict(state)
    for encoder in (with_it, without):
        encoder.projection.weight.data.zero_()
        encoder.projection.bias.data.fill_(0.5)
    x = random_features(3).float()
    expected = x.mean(1) @ with_it.residual.weight.T + with_it.residual.bias + 0.5
    torch.testing.assert_close(with_it.encode_target(with_it.see(x)), expected / expected.norm(dim=-1, keepdim=True))
    assert torch.pdist(without.encode_target(without.see(x))).max() < 1e-6


def test_tokens_have_the_place_and_scale_of_the_word_embeddings():
    encoder = built_encoder()
    words = encoder.backbone.llm.get_input_embeddings().weight
    image = encoder.see(random_features(50)).image
    spread = (words - words.mean(0)).square().mean().sqrt()
    torch.testing.assert_close((image - words.mean(0)).square().mean().sqrt(), spread, rtol=0.02, atol=0)


def test_the_standardiser_gives_mean_0_and_deviation_1():
    encoder = built_encoder()
    features = (3 * torch.randn(500, 4, 24) + torch.arange(24)).half()
    encoder.standardise.fit(features)
    flat = encoder.standardise(features).flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(24), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(0), torch.ones(24), atol=1e-3, rtol=0)


def test_sights_of_some_pictures_in_any_order_and_repeated():
    encoder = built_encoder().eval()
    features, index = random_features(3), torch.tensor([2, 0, 2])
    some, chosen = encoder.see(features).at(index), encoder.see(features[index])
    for field in ("image", "soft", "mean"):
        torch.testing.assert_close(getattr(some, field), getattr(chosen, field), atol=1e-6, rtol=0)
    torch.testing.assert_close(encoder.encode_target(some), encoder.encode_target(chosen), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("connector", "prompt", "checkpointing"), list(itertools.product(CONNECTORS, PROMPTS, [False, True])))
def test_every_trained_parameter_gets_a_gradient(connector, prompt, checkpointing):
    encoder = built_encoder(
        connector=CONNECTORS[connector](), soft_prompt=PROMPTS[prompt](), gradient_checkpointing=checkpointing, residual=True
    )
    encoder.train()
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        assert parameter.dtype == torch.float32, name
        if "lora_B" in name:  # starts at 0, where lora_A has no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    sight = encoder.see(random_features(16))  # more than one picture per prompt of the pool
    captions = [f"but {i}" for i in range(8)]
    query = encoder.encode_query(sight.at(torch.arange(8)), captions)
    loss = InfoNCE()(query, encoder.encode_target(sight.at(torch.arange(8, 16))), torch.arange(8)) + sight.pull.mean()
    loss.backward()
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    frozen = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    assert frozen
    assert all("backbone." in name or name.startswith("tower.") for name in frozen)
    assert all(p.grad is None for p in encoder.parameters() if not p.requires_grad)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        encoder = built_encoder(gradient_checkpointing=checkpointing).train()
        query, target = encode(encoder, random_features(4), CAPTIONS)
        (query * target.roll(1, 0)).sum().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_template": "{image}{soft}"}, r"model\.encoder\.query_template='\{image\}\{soft\}' has no hole \{caption\}"),
        ({"target_template": "{image} {caption}"}, r"model\.encoder\.target_template=.* a target has no caption"),
        ({"target_template": "{soft}"}, r"model\.encoder\.target_template=.* must have the hole \{image\}"),
    ],
)
def test_templates_without_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        tiny_encoder(**options)


def test_caption_features_are_the_mean_of_the_words_around_zero():
    encoder = built_encoder()
    words = encoder.backbone.llm.get_input_embeddings().weight.detach()
    ids = [encoder.backbone.tokenizer(f" {c}", add_special_tokens=False)["input_ids"] for c in CAPTIONS]
    expected = torch.stack([words[i].mean(0) for i in ids]) - words.mean(0)
    torch.testing.assert_close(encoder.caption_features(CAPTIONS), expected, atol=1e-6, rtol=0)
