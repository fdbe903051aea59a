"""Pooling against numpy, on both padding sides."""

from typing import get_args

import numpy as np
import pytest
import torch

from cir_lightning.pooling import Pooling, pool

LENGTHS, L, D = (1, 3, 6), 6, 5
SEQUENCES = [torch.randn(n, D, generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


def padded(side):
    """Hidden states (3, L, D) with large numbers in the padding, and their mask."""
    hidden, mask = torch.full((len(LENGTHS), L, D), 1e3), torch.zeros(len(LENGTHS), L, dtype=torch.long)
    for row, sequence in enumerate(SEQUENCES):
        real = slice(0, len(sequence)) if side == "right" else slice(L - len(sequence), L)
        hidden[row, real], mask[row, real] = sequence, 1
    return hidden, mask


def reference(sequence, how):
    h, i = sequence.double().numpy(), np.arange(1, len(sequence) + 1)
    return {"weighted_mean": (i[:, None] * h).sum(0) / i.sum(), "mean": h.mean(0), "last": h[-1], "eos": h[-1], "cls": h[0]}[how]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", get_args(Pooling))
def test_pool_matches_numpy_on_both_padding_sides(how, side):
    hidden, mask = padded(side)
    expected = np.stack([reference(s, how) for s in SEQUENCES])
    np.testing.assert_allclose(pool(hidden, mask, how), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(pool(hidden, mask.bool(), how), pool(hidden, mask, how))


@pytest.mark.parametrize("how", get_args(Pooling))
def test_pool_handles_holes_in_the_mask(how):
    """Padding between image tokens and caption does not count as a position."""
    sequence = SEQUENCES[1]
    hidden = torch.full((1, 5, D), 1e3)
    hidden[0, [0, 2, 3]] = sequence
    np.testing.assert_allclose(pool(hidden, torch.tensor([[1, 0, 1, 1, 0]]), how)[0], reference(sequence, how), rtol=1e-5, atol=1e-6)


def test_pool_sums_in_float32_even_under_autocast():
    hidden, mask = torch.randn(2, 200, D).bfloat16(), torch.ones(2, 200, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = pool(hidden, mask, "weighted_mean")
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, pool(hidden.float(), mask, "weighted_mean"), rtol=0, atol=0)


@pytest.mark.parametrize("how", get_args(Pooling))
def test_padding_gets_no_gradient(how):
    hidden, mask = padded("right")
    hidden.requires_grad_()
    pool(hidden, mask, how).sum().backward()
    assert (hidden.grad[mask == 0] == 0).all()
    assert (hidden.grad.abs().sum((1, 2)) > 0).all()
