"""Marks that nobody reads must change nothing."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from fakes.build import built_encoder, random_features

from data_modules.stages import observed, stage


class Listener:
    """Writes down what it is told."""

    def __init__(self):
        self.heard = []

    def enter(self, name):
        """A stage begins."""
        self.heard.append(name)

    def leave(self):
        """It ends."""
        self.heard.append("end")


def test_it_is_the_same_null_context_unless_somebody_observes():
    assert stage("a") is stage("b")
    assert isinstance(stage("a"), nullcontext)


def test_an_observer_hears_of_nested_stages_and_of_one_that_fails():
    listener = Listener()
    with observed(listener):
        with stage("a"), stage("b"):
            pass
        with pytest.raises(ZeroDivisionError), stage("c"):
            _ = 1 / 0
    with stage("d"):
        pass
    assert listener.heard == ["a", "b", "end", "end", "c", "end"]


def test_one_observer_within_another():
    outer, inner = Listener(), Listener()
    with observed(outer):
        with observed(inner), stage("a"):
            pass
        with stage("b"):
            pass
    assert (inner.heard, outer.heard) == (["a", "end"], ["b", "end"])


def test_embeddings_and_gradients_do_not_depend_on_an_observer():
    def made(watch):
        encoder = built_encoder().train()
        with watch:
            sight = encoder.see(random_features(3))
            vectors = torch.cat([encoder.encode_query(sight, ["but red", "as a circle", "but"]), encoder.encode_target(sight)])
            (vectors[:3] * vectors[3:]).sum().backward()
        return vectors, [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]

    listener = Listener()
    (plain, plain_gradients), (watched, gradients) = made(nullcontext()), made(observed(listener))
    assert torch.equal(plain, watched)
    assert len(gradients) > 10
    assert all(map(torch.equal, plain_gradients, gradients))
    names = [name for name in listener.heard if name != "end"]
    assert names == ["Connector", "template", "caption", "LLM forward", "pooling", "template", "caption", "LLM forward", "pooling"]


def test_it_is_light():
    code = "import sys, data_modules.stages; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in modules
