"""Soft prompts: which are chosen, what they weigh, who gets a gradient."""

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from cir_lightning.prompt_pool import NoPrompt, PromptPool, SoftPrompt, UniversalPrompt
from data_modules.errors import UserError

B, N, DV, D = 5, 4, 12, 16


def made(prompt):
    torch.manual_seed(0)
    prompt.build(DV, D)
    return prompt


def features():
    return torch.randn(B, N, DV, generator=torch.Generator().manual_seed(1))


def numpy_pool(pool, x):
    """The docstring in numpy: chosen, tokens, pull."""
    w, keys, prompts = (t.detach().double().numpy() for t in (pool.query.weight, pool.keys, pool.prompts))
    q = x.double().numpy().mean(1) @ w.T
    cosine = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (keys / np.linalg.norm(keys, axis=1, keepdims=True)).T
    chosen = np.argsort(-cosine, axis=1)[:, : pool.chosen]
    best = np.take_along_axis(cosine, chosen, 1)
    weights = pool.chosen * np.exp(best) / np.exp(best).sum(1, keepdims=True)
    tokens = (weights[:, :, None, None] * prompts[chosen]).reshape(len(q), -1, D)
    return chosen, tokens, pool.pull * (1 - best).sum(1)


def test_pool_matches_numpy():
    pool, x = made(PromptPool(7, 3, chosen=4, pull=0.3)), features()
    out = pool(x)
    chosen, tokens, pull = numpy_pool(pool, x)
    assert out.chosen.tolist() == chosen.tolist()
    assert out.tokens.shape == (B, pool.length, D) == (B, 12, D)
    np.testing.assert_allclose(out.tokens.detach(), tokens, atol=1e-6)
    np.testing.assert_allclose(out.pull.detach(), pull, atol=1e-6)


def test_choice_is_per_instance_not_per_batch():
    pool, x = made(PromptPool(30, 2, chosen=3)), features()
    chosen = pool(x).chosen
    assert len({frozenset(row.tolist()) for row in chosen}) > 1
    assert all(len(set(row.tolist())) == 3 for row in chosen)
    assert torch.equal(pool(x[2:3]).chosen, chosen[2:3])


def alive(module):
    return {n for n, p in module.named_parameters() if p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 1e-7}


def test_main_loss_alone_trains_keys_query_and_prompts():
    pool = made(PromptPool(4, 2, chosen=3, pull=0.0))
    out = pool(features())
    assert not out.pull.any()
    (out.tokens * torch.randn_like(out.tokens)).sum().backward()
    assert alive(pool) == {"prompts", "keys", "query.weight"}


def test_pull_trains_only_the_chosen_keys():
    pool = made(PromptPool(30, 2, chosen=2, pull=0.5))
    out = pool(features())
    out.pull.mean().backward()
    assert alive(pool) == {"keys"}
    assert set(pool.keys.grad.abs().sum(1).nonzero().flatten().tolist()) == set(out.chosen.flatten().tolist())


def test_pull_brings_keys_nearer():
    pool, x = made(PromptPool(6, 1, chosen=2)), features()
    optimizer = torch.optim.SGD(pool.parameters(), lr=1.0)
    pulls = []
    for _ in range(20):
        pulls.append(pool(x).pull.mean())
        optimizer.zero_grad()
        pulls[-1].backward()
        optimizer.step()
    assert pulls[-1] < 0.9 * pulls[0]


def test_one_chosen_prompt_is_unweighted_and_its_key_is_pulled():
    pool = made(PromptPool(3, 2, chosen=1))
    out = pool(features())
    torch.testing.assert_close(out.tokens, pool.prompts[out.chosen[:, 0]])
    (out.tokens.square().sum() + out.pull.mean()).backward()
    assert {"keys", "prompts"} <= alive(pool)
    assert pool.query.weight.grad is not None  # in the graph, so DDP does not miss it


def test_universal_prompt_is_the_same_for_all():
    prompt = made(UniversalPrompt(6))
    out = prompt(features())
    assert (prompt.length, out.chosen, out.pull.tolist()) == (6, None, [0] * B)
    assert out.tokens.shape == (B, 6, D)
    assert torch.equal(out.tokens[0], out.tokens[-1])
    out.tokens.sum().backward()
    assert alive(prompt) == {"prompt"}


def test_no_prompt_adds_nothing():
    prompt = made(NoPrompt())
    out = prompt(features())
    assert (prompt.length, out.chosen, out.pull.tolist(), out.tokens.shape) == (0, None, [0] * B, (B, 0, D))
    assert list(prompt.parameters()) == []


def test_wrong_sizes_are_refused():
    with pytest.raises(UserError, match=r"chosen=8 of size=7 prompts; set `soft_prompt.chosen` to 1..7 or enlarge `soft_prompt.size`"):
        PromptPool(7, 2, chosen=8)
    with pytest.raises(UserError, match="chosen=0"):
        PromptPool(chosen=0)
    for kind in (PromptPool, UniversalPrompt):
        with pytest.raises(UserError, match=r"tokens=0 is below 1.*`NoPrompt`"):
            kind(tokens=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # instantiate_classes: the only name before jsonargparse 4.49
@pytest.mark.parametrize(("kind", "args", "length"), [("PromptPool", {}, 40), ("UniversalPrompt", {"tokens": 3}, 3), ("NoPrompt", {}, 0)])
def test_a_config_builds_it(kind, args, length):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SoftPrompt, "soft_prompt")
    config = {"class_path": f"cir_lightning.prompt_pool.{kind}", "init_args": args}
    assert parser.instantiate_classes(parser.parse_object({"soft_prompt": config})).soft_prompt.length == length
