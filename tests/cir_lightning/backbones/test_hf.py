"""Every family against its own full forward pass, at tiny size, from files as they lie on the hub."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.lvlms import IMAGE, PATCH, SIDE, write_lvlm
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, CLIPImageProcessorPil, LlamaConfig, LlavaModel
from transformers import Blip2ForConditionalGeneration as Blip2

from cir_lightning.backbones.hf import FAMILIES, HFLVLM
from cir_lightning.backbones.kept import kept
from cir_lightning.backbones.lora import LoRA
from cir_lightning.connector import Resampler
from cir_lightning.encoder import IntentEncoder
from cir_lightning.loss import InfoNCE
from cir_lightning.prompt_pool import NoPrompt, PromptPool
from data_modules.errors import UserError

PADDING = 2


@pytest.fixture(scope="module", params=FAMILIES)
def lvlm(request, tmp_path_factory):
    """A built backbone, the folder that it was read from and its family's name."""
    family = request.param
    folder = write_lvlm(family, tmp_path_factory.mktemp(family))
    side = 2 * SIDE if family == "llava_next" else SIDE
    lvlm = HFLVLM(str(folder), dtype="float32", image_size=side, tiles=family == "llava_next")
    lvlm.build()
    return lvlm.eval(), folder, family


def pixels(lvlm, count=2):
    side = lvlm.tower.image_size
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def own_forward(folder, family, images, rows):
    """The family's model on token ids with placeholders, and its own pixels."""
    base = (Blip2 if family == "blip-2" else AutoModel).from_pretrained(folder, dtype=torch.float32).eval()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    options = {"do_image_splitting": False} if family in {"smolvlm", "idefics3"} else {}
    nested = [[picture] for picture in pictures] if options else pictures
    given = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=nested, return_tensors="pt", **options)
    given = {name: value for name, value in given.items() if name not in {"num_patches", "num_crops", "rows", "cols"}}
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    if "qwen" in family:
        given["mm_token_type_ids"] = (ids == IMAGE).int()
    if family in {"gemma3", "paligemma"}:
        given["token_type_ids"] = (ids == IMAGE).long() if family == "gemma3" else torch.zeros_like(ids)
    with torch.no_grad():
        out = base(input_ids=ids, attention_mask=mask, **given, output_hidden_states=family == "blip-2")
    return ids, mask, out.language_model_outputs.hidden_states[-1] if family == "blip-2" else out.last_hidden_state


def test_a_query_is_read_as_by_the_familys_own_forward(lvlm):
    lvlm, folder, family = lvlm
    images = pixels(lvlm)
    vision = lvlm.vision.run(images)
    tokens = vision.shape[1]
    rows = [[5, 6, *[IMAGE] * tokens, 7, 8, 9, 10], [11, *[IMAGE] * tokens, 12]]
    ids, mask, expected = own_forward(folder, family, images, rows)
    embeds = lvlm.llm.get_input_embeddings()(ids)
    with torch.no_grad():
        found = lvlm.read(embeds, mask, ids == IMAGE, vision)
    assert (expected[0] - expected[1])[:2].abs().max() > 0.1
    torch.testing.assert_close(found * mask[..., None], expected * mask[..., None], atol=1e-5, rtol=0)


def test_little_padding_is_read_beside_visual_tokens(lvlm):
    """In a batch of two lengths, each has a pass of its own, if sequences cannot share rows."""
    lvlm = lvlm[0]
    vision = lvlm.vision.run(pixels(lvlm))
    lengths = [vision.shape[1] + 3, 2 * vision.shape[1] + 40]
    mask = (torch.arange(lengths[1]) < torch.tensor(lengths)[:, None]).long()
    seen = (torch.arange(lengths[1]) < vision.shape[1])[None].expand(2, -1)
    embeds, read = torch.randn(2, lengths[1], lvlm.width), []
    hook = lvlm.llm.register_forward_pre_hook(lambda _, __, given: read.append(given["inputs_embeds"].shape[:2].numel()), with_kwargs=True)
    with torch.no_grad():
        hidden = lvlm.read(embeds, mask, seen, vision)
    hook.remove()
    assert hidden.shape == (2, lengths[1], lvlm.width)
    assert sum(read) == (2 * lengths[1] if lvlm.family.whole else sum(lengths))


def test_llava_next_in_one_view_is_llava(tmp_path):
    folder = write_lvlm("llava_next", tmp_path)
    lvlm = HFLVLM(str(folder), dtype="float32", image_size=SIDE)
    lvlm.build()
    images = pixels(lvlm)
    base = LlavaModel.from_pretrained(folder, config=lvlm.base.config, dtype=torch.float32).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    given = processor(images=[image.permute(1, 2, 0).numpy() for image in images], return_tensors="pt")
    with torch.no_grad():
        expected = torch.stack(list(base.get_image_features(given["pixel_values"]).pooler_output))
    torch.testing.assert_close(lvlm.vision.run(images), expected, atol=1e-6, rtol=0)
    assert lvlm.tower.patches == 16


def test_patch_features_are_what_the_projector_reads(lvlm):
    lvlm, _, family = lvlm
    images = pixels(lvlm, 3)
    features = lvlm.tower(images)
    assert features.dtype == torch.float16
    assert features.shape == (3, lvlm.tower.patches, lvlm.tower.width)
    assert lvlm.tower.patches == {"llava_next": 5 * 16, "internvl": 4, "blip-2": 1 + 16}.get(family, 16)
    torch.testing.assert_close(lvlm.tower(images[1:2]), features[1:2], atol=2e-3, rtol=2e-3)
    assert (features[0] - features[1]).abs().max() > 0.05
    assert lvlm.vision.width == {"qwen3_vl": 3}.get(family, 1) * lvlm.width
    assert lvlm.tower.key != lvlm.vision.key


def test_patches_are_pooled_with_their_neighbours(lvlm):
    """Of black pictures with one bright quadrant, that quarter of the pooled map differs most from black."""
    lvlm, _, family = lvlm
    if family in {"llava_next", "blip-2"}:
        pytest.skip("tiles, or a class token: no square map, which kept() refuses")
    pictures = torch.zeros(5, 3, SIDE, SIDE, dtype=torch.uint8)
    half = SIDE // 2
    for which in range(4):
        y, x = which // 2 * half, which % 2 * half
        pictures[which, :, y : y + half, x : x + half] = 255
    pooled = kept(lvlm.tower, math.isqrt(lvlm.tower.patches) // 2, "float16")(pictures).float()
    assert (pooled[:4] - pooled[4]).norm(dim=-1).argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("window", [28, 56, 84])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwens_patches_are_in_rows_and_pooled_in_squares(family, window, tmp_path):
    """A vision transformer without layers: every feature is a patch's pixels times the weights of its embedding, by numpy."""
    folder, side, grid = write_lvlm(family, tmp_path), 2 * SIDE, 8
    config = json.loads((folder / "config.json").read_text())
    if family == "qwen2_5_vl":
        config["vision_config"]["window_size"] = window
    (folder / "config.json").write_text(json.dumps(config))
    lvlm = HFLVLM(str(folder), dtype="float32", image_size=side)
    lvlm.build()
    lvlm.base.visual.blocks = torch.nn.ModuleList()
    embed = lvlm.base.visual.patch_embed.proj
    if family == "qwen3_vl":
        lvlm.base.visual.pos_embed.weight.data.zero_()
    pictures = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    processor = lvlm.checkpoint.image_processor()
    mean, std = (np.array(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    normal = (pictures.numpy() / 255 - mean) / std
    weight = embed.weight.detach().numpy().sum(2)  # of two frames alike
    bias = 0 if embed.bias is None else embed.bias.detach().numpy()
    expected = np.empty((2, grid, grid, len(weight)))
    for y, x in itertools.product(range(grid), repeat=2):
        patch = normal[:, :, PATCH * y : PATCH * (y + 1), PATCH * x : PATCH * (x + 1)]
        expected[:, y, x] = np.einsum("bcij,dcij->bd", patch, weight) + bias
    np.testing.assert_allclose(lvlm.tower(pictures), expected.reshape(2, grid**2, -1), atol=5e-3)
    for pooling in (2, 4):
        squares = expected.reshape(2, grid // pooling, pooling, grid // pooling, pooling, -1).mean((2, 4))
        np.testing.assert_allclose(kept(lvlm.tower, pooling, "float16")(pictures), squares.reshape(2, -1, len(weight)), atol=5e-3)
    assert lvlm.tower.key.endswith("px-rows")


def targets(family):
    return ("q_proj", "v_proj", "fc1") if family == "blip-2" else LoRA().targets


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trained_parameter_gets_a_gradient(lvlm, native, checkpointing):
    """Through query and target in one step, with visual tokens of its own and with a Connector."""
    hole = "{vision}" if native else "{image}"
    torch.manual_seed(0)
    encoder = IntentEncoder(
        HFLVLM(
            str(lvlm[1]), dtype="float32", image_size=SIDE, lora=LoRA(4, targets=targets(lvlm[2])), gradient_checkpointing=checkpointing
        ),
        None if native else Resampler(4, 32, depth=1, heads=4),
        soft_prompt=PromptPool(6, 1, chosen=2),
        query_template=f"{hole}{{soft}} Edit: {{caption}}:",
        target_template=f"{hole}{{soft}} Picture:",
        width=16,
    )
    encoder.build()
    encoder.train()
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained if name.startswith("backbone."))
    for name, parameter in trained.items():
        assert parameter.dtype == torch.float32, name
        if "lora_B" in name:  # starts at 0, where lora_A has no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    images = pixels(encoder, 8)
    sight = encoder.see(encoder.tower(images), encoder.vision(images) if native else None)
    query = encoder.encode_query(sight.at(torch.arange(4)), ["but red", "in blue", "as a circle", "red"])
    loss = InfoNCE()(query, encoder.encode_target(sight.at(torch.arange(4, 8))), torch.arange(4)) + sight.pull.mean()
    loss.backward()
    for name, parameter in trained.items():
        if not name.startswith("loss."):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_adapters_on_the_vision_transformer(tmp_path):
    folder = write_lvlm("llava", tmp_path)
    vision_lora = LoRA(4, targets=("q_proj", "fc1"))
    lvlm = HFLVLM(str(folder), dtype="float32", image_size=SIDE, vision_lora=vision_lora)
    lvlm.build()
    trained = {name: p for name, p in lvlm.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2  # layers, adapted layers of each, A and B; LLaVA reads the last layer but one
    assert all(name.startswith("base.vision_tower.") for name in trained)
    images = pixels(lvlm)
    before = lvlm.tower(images)
    torch.testing.assert_close(lvlm.tower.look(images).half(), before)
    for name, parameter in trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert torch.equal(lvlm.tower(images), before)  # what is cached is the frozen tower's
    seen = lvlm.tower.look(images)
    assert (seen - before).abs().max() > 0.1
    (seen.square().sum() + lvlm.vision.look(images).square().sum()).backward()
    for name, parameter in lvlm.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert reached is (name in trained), name


def test_checkpointing_changes_no_gradient(lvlm):
    """The visual tokens are handed in for the length of the forward pass; what is recomputed in the backward pass must see them, too."""
    gradients, passes = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = HFLVLM(
            str(lvlm[1]), dtype="float32", image_size=SIDE, lora=LoRA(4, targets=targets(lvlm[2])), gradient_checkpointing=checkpointing
        )
        encoder = IntentEncoder(
            backbone,
            None,
            soft_prompt=NoPrompt(),
            query_template="{vision} Edit: {caption}:",
            target_template="{vision} Picture:",
            width=16,
        )
        encoder.build()  # Lightning leaves it in the mode that it is built in
        mlp = next(part for name, part in backbone.llm.named_modules() if name.endswith(("mlp", "fc1")))
        runs: list[int] = []
        mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator)
        images = pixels(encoder, 2)
        sight = encoder.see(encoder.tower(images), encoder.vision(images))
        (encoder.encode_query(sight, ["but red", "in blue, larger"]) * encoder.encode_target(sight).roll(1, 0)).sum().backward()
        passes.append(len(runs))
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.requires_grad})
    assert passes[1] == 2 * passes[0] > 0
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_an_embedding_does_not_depend_on_its_batch(lvlm):
    lvlm, folder, _ = lvlm
    torch.manual_seed(0)
    encoder = IntentEncoder(
        HFLVLM(str(folder), dtype="float32", image_size=lvlm.tower.image_size, tiles=lvlm.tiles),
        Resampler(4, 32, depth=1, heads=4),
        soft_prompt=PromptPool(6, 1, chosen=2),
        query_template="{vision}{image}{soft} Edit: {caption}:",
        width=16,
    )
    encoder.build()
    encoder.eval()
    images, captions = pixels(lvlm, 2), ["red", "as a circle in blue, but larger"]  # the first is padded beside the second
    with torch.no_grad():
        sight = encoder.see(lvlm.tower(images), lvlm.vision(images))
        both = encoder.encode_query(sight, captions)
        alone = encoder.encode_query(sight.at(torch.tensor([0])), captions[:1])
        targets = encoder.encode_target(sight)
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(("quantisation", "kind"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_base_trains_its_adapters(family, quantisation, kind, tmp_path):
    config = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes wants multiples of 64
    folder = write_lvlm(family, tmp_path / family, **config)
    lora = LoRA(4, targets=("q_proj", "v_proj"))
    lvlm = HFLVLM(str(folder), dtype="float32", image_size=SIDE, quantisation=quantisation, lora=lora)
    lvlm.build()
    kinds = {name: type(part).__name__ for name, part in lvlm.base.named_modules()}
    quantised = {name for name, found in kinds.items() if found == kind}
    assert len(quantised) == 2 * (6 if family == "blip-2" else 7)  # OPT's MLP has no gate
    assert all(name.startswith(lvlm.family.llm) for name in quantised)
    assert lvlm.llm.get_input_embeddings().weight.dtype == torch.float32  # not tied to a packed head
    optimizer = torch.optim.AdamW([p for p in lvlm.parameters() if p.requires_grad], 1e-2)
    losses = []
    embeds, mask = torch.randn(2, 5, 64), torch.ones(2, 5, dtype=torch.long)
    for _ in range(4):
        loss = lvlm.read(embeds, mask, mask > 1, None)[:, -1].sub(1).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_layers_that_no_4_bit_block_fits(tmp_path, monkeypatch):
    folder = write_lvlm("llava", tmp_path)
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("the weights were read"))
    assert refused(folder, quantisation="nf4") == (
        f"backbone.quantisation='nf4' packs 32 rows of 64 numbers, and language_model.layers.0.self_attn.q_proj of {folder} has 48 rows of "
        "48; set int8 or none"
    )


@pytest.mark.parametrize(
    ("options", "update"), [({"alpha": 8}, 8 / 4), ({"alpha": 8, "rslora": True}, 8 / 2), ({"alpha": 8, "dora": True}, 8 / 4)]
)
def test_adapters_are_scaled_as_asked(options, update, tmp_path):
    lvlm = HFLVLM(str(write_lvlm("llava", tmp_path)), dtype="float32", image_size=SIDE, lora=LoRA(4, **options))
    lvlm.build()
    layer = lvlm.llm.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == update
    assert bool(layer.use_dora["default"]) is options.get("dora", False)
    assert ("lora_magnitude_vector" in {name.split(".")[0] for name, _ in layer.named_parameters()}) is options.get("dora", False)


def test_a_model_without_an_lm_head_on_disk_is_read_too(tmp_path):
    folder = write_lvlm("llava", tmp_path / "whole")
    base = AutoModel.from_pretrained(folder)
    base.save_pretrained(tmp_path / "whole")  # over the one with a head
    lvlm = HFLVLM(str(folder), dtype="float32", image_size=SIDE)
    lvlm.build()
    for name, weight in base.state_dict().items():
        assert torch.equal(lvlm.base.state_dict()[name], weight), name


# ---- what is refused -------------------------------------------------------------------------------------------------------------


def refused(folder, **options):
    with pytest.raises(UserError) as caught:
        HFLVLM(str(folder), **options).build()
    return str(caught.value)


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused("nobody/nothing-7b")
    assert message.startswith("cannot read config.json of 'nobody/nothing-7b' (no folder, and not within reach on the hub: ")
    assert message.endswith("and fetch it beforehand with hf download, then HF_HUB_OFFLINE=1 works")
    assert "of 'nobody/nothing-7b', revision 'v2' (no folder" in refused("nobody/nothing-7b", revision="v2")
    assert refused(tmp_path).startswith(f"cannot read config.json of the folder '{tmp_path}' (")


def test_a_model_that_asks_for_its_own_code(tmp_path):
    config = {"model_type": "qwen", "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "configuration_qwen.py").write_text("raise SystemExit('this code was run')")
    assert "asks for code of its own, which is never run; " in refused(tmp_path)


def test_a_model_that_is_no_lvlm(tmp_path):
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    assert "is a 'llama', which is no LVLM known here; known are blip-2, llava, llava_next" in refused(tmp_path)


def test_tiles_are_llava_nexts(tmp_path):
    assert "backbone.tiles is of LLaVA-1.6, and " in refused(write_lvlm("llava", tmp_path), tiles=True)


def test_damaged_and_incomplete_weights(tmp_path):
    folder = write_lvlm("llava", tmp_path)
    file = folder / "model.safetensors"
    whole = load_file(file)
    lost = next(name for name in whole if "layers.1" in name and "language_model" in name)
    save_file({name: tensor for name, tensor in whole.items() if name != lost}, file, {"format": "pt"})
    assert f"{folder} lacks 1 tensors of its model, the first of them language_model.layers.1" in refused(folder, dtype="float32")
    file.write_bytes(file.read_bytes()[:-1000])
    assert f"cannot read weights of the folder '{folder}' (" in refused(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "config.json"])
def test_missing_files(name, tmp_path):
    folder = write_lvlm("qwen2_5_vl", tmp_path)
    (folder / name).unlink()
    assert str(folder) in refused(folder, dtype="float32", image_size=SIDE)


def test_adapters_that_match_nothing(tmp_path):
    folder = write_lvlm("llava", tmp_path)
    assert refused(folder, lora=LoRA(4, targets=())).startswith("lora.targets is empty; name linear layers")
    message = refused(folder, lora=LoRA(4, targets=("q_proj", "c_attn")))
    assert message.startswith("lora.targets=['q_proj', 'c_attn']: 'c_attn' matches no linear layer; this model has ['down_proj', ")
    assert "lora.dora does not work over quantisation='int8'; use nf4, or set" in refused(
        folder, quantisation="int8", lora=LoRA(4, dora=True)
    )


class Payload:
    """Would make a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def test_pickles_with_code_are_never_run(tmp_path):
    folder = write_lvlm("llava", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(Payload(tmp_path / "made"), folder / "pytorch_model.bin")
    assert f"cannot read weights of the folder '{folder}' (" in refused(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("family", "size", "made"), [("llava", 60, 56), ("qwen2_5_vl", 60, 56), ("gemma3", 112, 56)])
def test_sizes_that_the_image_processor_changes(family, size, made, tmp_path):
    message = refused(write_lvlm(family, tmp_path), image_size=size, dtype="float32")
    assert message == f"backbone.image_size={size}: this model's image processor makes {made} pixels of it; set {made}"


def test_the_key_follows_every_weight_and_what_the_tower_is(tmp_path):
    folder = write_lvlm("llava_next", tmp_path)
    keys = [key_of(folder), key_of(folder, tiles=True), key_of(folder, dtype="bfloat16")]
    weights = load_file(folder / "model.safetensors")
    next(tensor for name, tensor in weights.items() if "patch_embedding" in name)[3, 1, 5, 5] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert len({*keys, key_of(folder)}) == 4


def key_of(folder, **options):
    lvlm = HFLVLM(str(folder), **{"image_size": SIDE, "dtype": "float32", **options})
    lvlm.build()
    return lvlm.tower.key


def test_the_key_follows_the_weights(tmp_path):
    keys = []
    for seed in (0, 0, 1):
        lvlm = HFLVLM(str(write_lvlm("llava", tmp_path / "model", seed)), image_size=SIDE, dtype="float32")
        lvlm.build()
        keys.append(lvlm.tower.key)
    assert keys[0] == keys[1] != keys[2]
