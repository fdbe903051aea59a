"""Means, spreads and intervals against numpy and printed tables of Student's t."""

import numpy as np
import pytest

from cir_lightning.study.statistics import paired, summarise, t_quantile

TABLE = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    10: 2.228,
    29: 2.045,
    30: 2.042,
    120: 1.980,
}


@pytest.mark.parametrize(("freedom", "value"), TABLE.items())
def test_the_printed_table(freedom, value):
    assert t_quantile(freedom) == pytest.approx(value, abs=6e-4)


def test_another_level():
    assert t_quantile(7, 0.9) == pytest.approx(1.895, abs=5e-4)


def test_a_sample():
    values = [41.5, 42.4, 41.3]
    found = summarise(values)
    assert (found.mean, found.spread, found.n) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)), 3)
    assert found.half == pytest.approx(4.302653 * np.std(values, ddof=1) / np.sqrt(3))


def test_one_value_has_no_interval():
    found = summarise([3.0])
    assert (found.mean, found.spread, found.half, found.excludes_zero) == (3.0, None, None, False)


def test_differences_are_of_common_seeds():
    ours, theirs = {0: 5.0, 1: 7.0, 2: 9.5, 8: 100.0}, {0: 4.0, 1: 5.0, 2: 8.0, 9: -100.0}
    found = paired(ours, theirs)
    assert (found.mean, found.spread, found.n) == (1.5, 0.5, 3)
    assert found.half == pytest.approx(4.302653 * 0.5 / np.sqrt(3))
    assert found.excludes_zero
    assert not paired({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0}).excludes_zero
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_equal_differences_say_nothing_of_the_spread():
    assert not paired({0: 2.0, 1: 2.0}, {0: 1.0, 1: 1.0}).excludes_zero


def test_the_interval_holds_what_it_says():
    """Of 4,000 samples of 3 normal numbers, 95 % have their mean within."""
    samples = np.random.default_rng(0).normal(5.0, 2.0, (4000, 3))
    held = [abs(found.mean - 5.0) <= found.half for found in map(summarise, samples.tolist())]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)
