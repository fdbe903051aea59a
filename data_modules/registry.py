"""The benchmarks by name; each is imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from data_modules.errors import UserError

if TYPE_CHECKING:
    from data_modules.base import CIRDataModule

BENCHMARKS = {
    "fashioniq": "data_modules.fashioniq.FashionIQ",
    "shoes": "data_modules.shoes.Shoes",
    "cirr": "data_modules.cirr.CIRR",
    "circo": "data_modules.circo.CIRCO",
    "genecis": "data_modules.genecis.GeneCIS",
    "emoji": "data_modules.emoji.EmojiCIR",
    "triplets": "data_modules.triplets.Triplets",
}


def find_benchmark(name: str) -> type[CIRDataModule]:
    """The data module of a benchmark.

    Raises:
        UserError: there is none of this name.
    """
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    module, _, kind = BENCHMARKS[name].rpartition(".")
    found: type[CIRDataModule] = getattr(import_module(module), kind)
    return found
