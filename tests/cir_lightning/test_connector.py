"""The Connector: shapes, scale, gradients, construction from a config."""

import pytest
import torch
from jsonargparse import ArgumentParser

from cir_lightning.connector import Connector, QFormer, Resampler
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
