from __future__ import annotations

import pytest

from data_modules.base import CIRDataModule
from data_modules.errors import UserError
from data_modules.registry import BENCHMARKS, find_benchmark


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_name_has_its_data_module(name: str):
    kind = find_benchmark(name)
    assert issubclass(kind, CIRDataModule)
    assert kind.__name__.removesuffix("CIR").lower() == name  # what messages call it


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(UserError, match=r"unknown benchmark 'fashion'; there are fashioniq, shoes, .*, triplets"):
        find_benchmark("fashion")
