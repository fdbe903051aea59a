"""The Connector: shapes, scale, gradients, construction from a config."""

import re
import shutil

import pytest
import torch
from fakes.build import tiny_encoder
from fakes.lvlms import write_lvlm
from fakes.runs import write_run
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from cir_lightning.api import load
from cir_lightning.connector import Connector, Linear, QFormer, Resampler
from cir_lightning.export import export
from data_modules.errors import UserError

B, N, DV, D = 3, 9, 20, 48
KINDS = [Resampler, QFormer]


def made(kind, **sizes):
    torch.manual_seed(0)
    connector = kind(**({"queries": 4, "width": 32, "depth": 3, "heads": 4} | sizes))
    connector.build(DV, N, D)
    return connector


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_have_mean_zero_and_unit_variance(kind):
    tokens = made(kind)(torch.randn(B, N, DV))
    assert tokens.shape == (B, 4, D)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(B, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(B, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_parameter_gets_a_gradient(kind, depth):
    connector = made(kind, depth=depth)
    tokens = connector(torch.randn(B, N, DV))
    (tokens * torch.randn_like(tokens)).sum().backward()
    dead = [n for n, p in connector.named_parameters() if p.grad is None or not p.grad.isfinite().all() or p.grad.abs().max() < 1e-6]
    assert dead == []


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_depend_on_picture_patch_order_and_query(kind):
    connector, features = made(kind).eval(), torch.randn(B, N, DV)
    tokens = connector(features)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-2
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 1e-2
    assert (connector(features.flip(1)) - tokens).abs().max() > 1e-3
    torch.testing.assert_close(connector(features[1:2]), tokens[1:2], atol=1e-5, rtol=1e-4)  # rows do not mix


def test_linear_is_the_map_that_its_name_says():
    torch.manual_seed(0)
    connector, features = Linear(), torch.randn(B, N, DV)
    connector.build(DV, N, D)
    assert connector.queries == N
    mapped = features.double() @ connector.out.weight.double().T + connector.out.bias.double()
    mapped -= mapped.mean(-1, keepdim=True)
    wanted = mapped / (mapped.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(connector(features).double(), wanted, atol=1e-5, rtol=0)
    (connector(features) * torch.randn(B, N, D)).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in connector.parameters())


def test_qformer_reads_the_patches_in_every_second_layer():
    layers = made(QFormer).encoder.encoder.layer
    assert [layer.has_cross_attention for layer in layers] == [True, False, True]


def test_resampler_drops_out_only_in_training():
    connector, features = made(Resampler, dropout=0.5), torch.randn(B, N, DV)
    assert not torch.equal(connector(features), connector(features))
    connector.eval()
    assert torch.equal(connector(features), connector(features))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_to_tell_pictures_apart(kind):
    connector = made(kind, depth=1)
    features, wanted = torch.randn(4, N, DV), torch.nn.functional.layer_norm(torch.randn(4, 4, D), (D,))
    optimizer = torch.optim.AdamW(connector.parameters(), lr=1e-2)
    for _ in range(60):
        loss = (connector(features) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # 2.0 at the start


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_sizes_are_refused(kind):
    with pytest.raises(UserError, match=r"width=30 is no multiple of heads=8.*`connector.width` to 24 or 32"):
        kind(width=30, heads=8)
    with pytest.raises(UserError, match=r"width=4 is no multiple of heads=8.*to 8 or 8"):
        kind(width=4, heads=8)
    with pytest.raises(UserError, match=r"queries=0 is below 1; set `connector.queries`"):
        kind(queries=0)
    with pytest.raises(UserError, match="heads=0"):
        kind(heads=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # instantiate_classes: the only name before jsonargparse 4.49
@pytest.mark.parametrize("kind", KINDS)
def test_a_config_builds_it(kind):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Connector, "connector")
    config = {"class_path": f"cir_lightning.connector.{kind.__name__}", "init_args": {"queries": 5, "heads": 2}}
    connector = parser.instantiate_classes(parser.parse_object({"connector": config})).connector
    assert isinstance(connector, kind)
    assert connector.queries == 5
    assert list(connector.parameters()) == []


# ---- BLIP-2's own Q-Former ---------------------------------------------------------------------------------------------------------

SIZES = {"queries": 4, "width": 32, "depth": 2, "heads": 4}


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    return write_lvlm("blip-2", tmp_path_factory.mktemp("blip2"))


def started(folder, **options):
    connector = QFormer(**(SIZES | options), init_from=str(folder))
    connector.build(DV, N, D)
    return connector


def test_it_starts_as_blip_2s_q_former(blip2):
    base = AutoModelForImageTextToText.from_pretrained(blip2).eval()
    connector, patches = started(blip2).eval(), torch.randn(B, N, 32)
    with torch.no_grad():
        queries = base.query_tokens.expand(B, -1, -1)
        own = base.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
        ours = connector.encoder(query_embeds=connector.query.expand(B, -1, -1), encoder_hidden_states=patches).last_hidden_state
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    tokens = connector(torch.randn(B, N, DV))
    assert tokens.shape == (B, 4, D)
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert [name for name, p in connector.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_reads_shards_and_names_of_the_base_model(blip2, tmp_path):
    """And no shard that it does not need."""
    folder = tmp_path / "shards"
    AutoModelForImageTextToText.from_pretrained(blip2).save_pretrained(folder, max_shard_size="60KB")
    weights = (folder / "model.safetensors.index.json").read_text()
    (folder / "model.safetensors.index.json").write_text(
        weights.replace('"qformer.', '"model.qformer.').replace('"query_', '"model.query_')
    )
    for file in folder.glob("model-*.safetensors"):
        tensors = load_file(file)
        needed = {f"model.{name}": tensor for name, tensor in tensors.items() if name.startswith(("qformer.", "query_tokens"))}
        if needed:
            save_file(needed, file)
        else:
            file.write_bytes(b"not read")
    for name, parameter in started(folder).state_dict().items():
        if name.startswith(("encoder.", "query")):
            assert torch.equal(parameter, started(blip2).state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"queries": 8},
            r"connector sizes \{'queries': 8, .*\} are not those of connector\.init_from='.*'; set \{'queries': 4, 'width': 32, 'd",
        ),
        ({"patch_width": 64}, r"'patch_width': 64\} are not those of connector\.init_from='.*'; set .*'patch_width': 32\}"),
        ({"patch_width": 0}, r"connector: patch_width=0 is below 1; set `connector\.patch_width` to 1 or more"),
    ],
)
def test_other_sizes_are_refused(blip2, options, message):
    with pytest.raises(UserError, match=message):
        started(blip2, **options)


def test_what_is_no_blip_2(blip2, tmp_path):
    with pytest.raises(UserError, match=r"connector\.init_from='.*' is a 'llava', which has no Q-Former; name a BLIP-2"):
        started(write_lvlm("llava", tmp_path / "llava"))
    with pytest.raises(UserError, match=r"cannot read config\.json of 'nobody/blip2' \(no folder, and not within reach"):
        started("nobody/blip2")
    folder = shutil.copytree(blip2, tmp_path / "pickles")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"'.*pickles' has no file model\.safetensors; get it as safetensors"):
        started(folder)
    damaged = shutil.copytree(blip2, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"cannot read .*damaged/model\.safetensors \(.*\); get its files again"):
        started(damaged)
    headless = shutil.copytree(blip2, tmp_path / "headless")
    save_file({"query_tokens": torch.zeros(1, 4, 32)}, headless / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks the tensor qformer\.encoder\.layer\.0\.attention"):
        started(headless)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("query_tokens", (1, 9, 32)), ("qformer.layernorm.bias", (1,)), ("qformer.encoder.layer.0.output_query.dense.weight", (5, 7))],
)
def test_a_tensor_of_another_shape_than_the_config_says(blip2, tmp_path, name, shape):
    """Also where it could be stretched to the right one."""
    folder = shutil.copytree(blip2, tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: torch.zeros(shape)}, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=rf"connector\.init_from='.*' has {re.escape(name)} of shape {re.escape(str(shape))}, not \(.*get its f"
    ):
        started(folder)


@pytest.mark.parametrize("content", ["{cut", "{}", "[1]", '{"weight_map": [1]}', '{"weight_map": {"query_tokens": 3, "qformer.": "a"}}'])
def test_a_damaged_index(blip2, tmp_path, content):
    folder = shutil.copytree(blip2, tmp_path / "damaged")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"'.*damaged': model\.safetensors\.index\.json is damaged \(.*\); get its files again"):
        started(folder)


def test_a_file_in_the_place_of_a_folder(blip2):
    with pytest.raises(
        UserError, match=r"cannot read model\.safetensors\.index\.json of '.*config\.json' \(no folder, and not within reach"
    ):
        started(blip2 / "config.json")


def test_weights_that_were_not_fetched(blip2, tmp_path, monkeypatch):
    """The hub's cache has the configuration, and nothing else is within reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--me--blip2" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    shutil.copy(blip2 / "config.json", snapshot)
    with pytest.raises(
        UserError, match=r"'me/blip2' has no file model\.safetensors within reach; fetch it beforehand with hf download me/blip2"
    ):
        started("me/blip2")


def test_what_was_trained_does_not_need_the_blip_2_any_more():
    encoder = tiny_encoder(connector=QFormer(4, 32, heads=4, init_from="nobody/blip2"))
    encoder.restored = True
    encoder.build()
    assert encoder.connector.patch_input.linear.out_features == 32


def test_an_export_does_not_need_it_either(tmp_path, blip2):
    base, origin = write_lvlm("llava", tmp_path / "base"), shutil.copytree(blip2, tmp_path / "origin")
    former = {"class_path": "cir_lightning.connector.QFormer", "init_args": SIZES | {"init_from": str(origin)}}
    options = {"model": str(base), "dtype": "float32", "lora": {"rank": 2}}
    run = write_run(tmp_path / "run", "hf.HFLVLM", options, connector=former)
    shutil.rmtree(origin)
    assert load(export(str(run), tmp_path / "out")).encoder.connector.init_from is None
