"""Compiled parts give the same, and are not compiled anew for every length."""

import pytest
import torch
from fakes.build import built_encoder, random_features, tiny_encoder
from torch._dynamo.testing import CompileCounter

from cir_lightning.backbones.combiner import Combiner
from cir_lightning.compiling import compile_parts, parts_to_compile
from data_modules.errors import UserError

CAPTIONS = ["red", "as a circle in blue but as a bar in pink", "but red", "in a green", "as a cross in brown"]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def encoded(encoder, number):
    sight = encoder.see(random_features(number))
    return encoder.encode_query(sight, CAPTIONS[:number]), encoder.encode_target(sight)


def test_vectors_and_gradients_stay_and_lengths_compile_nothing():
    plain, compiled, counter = built_encoder(), built_encoder(), CompileCounter()
    compile_parts(compiled, counter)
    frames = []
    for number in (2, 3, 4, 5):
        vectors = [encoded(encoder, number) for encoder in (plain, compiled)]
        for ours, theirs in zip(*vectors, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        frames.append(counter.frame_count)
    assert frames[0] > 0
    assert frames[1:] == [frames[1]] * 3
    for query, target in vectors:
        (query * target.roll(1, 0)).sum().backward()
    for (name, mine), (other, plainly) in zip(compiled.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other
        if plainly.grad is not None:
            torch.testing.assert_close(mine.grad, plainly.grad, atol=1e-5, rtol=1e-3)


def test_the_parts_are_the_layers_and_the_connector():
    encoder = built_encoder()
    assert parts_to_compile(encoder) == [*encoder.backbone.llm.layers, encoder.connector]


def test_without_a_compiler_or_parts_it_is_refused(monkeypatch):
    combiner = Combiner()
    combiner.build()
    with pytest.raises(UserError, match=r"model\.compiled: Combiner has no large parts to compile; set it to false"):
        compile_parts(combiner)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"model\.compiled needs a C\+\+ compiler, such as g\+\+, which is not found; install one"):
        compile_parts(tiny_encoder())
