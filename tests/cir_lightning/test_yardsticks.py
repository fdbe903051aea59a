"""The yardsticks against numpy."""

import numpy as np
import pytest
import torch
from fakes.build import tiny_module, tiny_trainer
from fakes.tiny import TinyCIR

from cir_lightning.retrieval.ranking import rank
from cir_lightning.yardsticks import Yardsticks, ridge, with_constant


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A module after a test run."""
    root = tmp_path_factory.mktemp("yardsticks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(root / "cache"))
        module = tiny_module()
        tiny_trainer(root).test(module, datamodule=TinyCIR(str(root)), verbose=False)
    return module


@pytest.mark.parametrize("strength", [0.0, 1.0, 30.0])
def test_ridge_is_numpys_closed_form(strength):
    rng = np.random.default_rng(0)
    x, y = 3 * rng.normal(size=(50, 7)) + 1, rng.normal(size=(50, 4))
    ones = np.hstack([x, np.ones((50, 1))])
    penalty = strength * 50 * np.mean(x**2)
    stacked = np.vstack([ones, np.sqrt(penalty) * np.eye(8)])  # ridge as least squares with more rows
    expected = np.linalg.lstsq(stacked, np.vstack([y, np.zeros((8, 4))]), rcond=None)[0]
    got = ridge(torch.tensor(x).float(), torch.tensor(y).float(), strength)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_ridge_finds_a_linear_map_and_a_constant():
    x = torch.randn(200, 3)
    weight, constant = torch.randn(3, 2), torch.tensor([5.0, -1.0])
    found = ridge(x, x @ weight + constant, strength=1e-6)
    torch.testing.assert_close(with_constant(x) @ found, x @ weight + constant, atol=1e-4, rtol=0)


def test_methods_and_shapes(tested):
    for evaluation in tested.data.evaluation_sets("test"):
        methods = list(Yardsticks(tested).rank_vectors(evaluation))
        assert [name for name, _, _ in methods] == ["random", "reference image only", "caption only", "sum of both"]
        for _, queries, gallery in methods:
            assert queries.shape == (len(evaluation.queries), 24)
            assert gallery.shape == (len(evaluation.gallery), 24)
            torch.testing.assert_close(gallery.norm(dim=-1), torch.ones(len(gallery)))


def test_reference_image_only_is_the_cosine_of_mean_features(tested):
    raw = tested.features[:].numpy().astype(np.float64)
    train = raw[tested.data.train_pictures()].reshape(-1, raw.shape[-1])
    features = ((raw - train.mean(0)) / (train.std(0, ddof=1) + 1e-5)).mean(1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    index = tested.data.picture_index
    for evaluation in tested.data.evaluation_sets("test"):
        (image,) = (vectors for name, *vectors in Yardsticks(tested).rank_vectors(evaluation) if name == "reference image only")
        ranking = rank(*image, evaluation, top=5)
        gallery = features[[index[name] for name in evaluation.gallery]]
        for query, top in zip(evaluation.queries, ranking.scores.numpy(), strict=True):
            scores = gallery @ features[index[query.reference]]
            scores[evaluation.gallery.index(query.reference)] = -np.inf
            np.testing.assert_allclose(top, np.sort(scores)[::-1][:5], atol=1e-5)


def test_caption_only_knows_what_captions_ask_for(tested):
    """The shapes and colours are linear in the pixels: far above chance, and the sum is the best of all."""
    evaluation = tested.data.evaluation_sets("test")[0]
    found = {name: rank(q, g, evaluation).ranks.float().mean() for name, q, g in Yardsticks(tested).rank_vectors(evaluation)}
    assert found["caption only"] < found["random"] - 5
    assert found["sum of both"] < min(found["caption only"], found["reference image only"])


def test_random_is_the_same_every_time(tested):
    evaluation = tested.data.evaluation_sets("test")[0]
    first, second = (next(iter(Yardsticks(tested).rank_vectors(evaluation)))[1] for _ in range(2))
    assert torch.equal(first, second)
