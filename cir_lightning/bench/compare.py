"""``cir bench --compare``: two runs in one table. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from cir_lightning.bench.results import Arm, Work, read
from cir_lightning.bench.tables import NONE, Table, as_text

if TYPE_CHECKING:
    from pathlib import Path

    from cir_lightning.bench.results import Bench

MATTERS = {
    "hardware": ("cpu", "cores", "threads", "memory_bytes", "gpu", "gpu_memory_bytes", "system"),
    "versions": ("python", "torch", "transformers", "lightning", "cir-lightning", "commit"),
}
SHOWN = 6  # keys of a configuration that differ


def compare(first: Path, second: Path) -> str:
    """Both runs with their ratios, and what else tells them apart.

    Raises:
        UserError: a file is no result of ``cir bench``.
    """
    a, b = read(first), read(second)
    arms = list(zip(a.arms, b.arms, strict=False))
    lines = [f"A: {first}", f"B: {second}", *differences(a, b)]
    for one, other in arms:
        name = one.name if one.name == other.name else f"A: {one.name}, B: {other.name}"
        lines += ["", *as_text(comparison(name, one, other))]
    extra = [f"only {which} has {arm.name}" for which, bench in (("A", a), ("B", b)) for arm in bench.arms[len(arms) :]]
    return "\n".join([*lines, *extra])


def differences(a: Bench, b: Bench) -> list[str]:
    """A sentence for hardware, versions, precision and configuration where they differ."""
    said = []
    for what, keys in MATTERS.items():
        if other := [f"{key} {a.header.get(key)} and {b.header.get(key)}" for key in keys if a.header.get(key) != b.header.get(key)]:
            said.append(f"The {what} differ, so ratios are not of the code alone: {'; '.join(other)}.")
    for one, other_arm in zip(a.arms, b.arms, strict=False):
        settings = ((arm.device, arm.precision, arm.seed) for arm in (one, other_arm))
        for name, *pair in zip(("device", "precision", "seed"), *settings, strict=True):
            if pair[0] != pair[1]:
                said.append(f"The {name} differs: {pair[0]} and {pair[1]}.")
        if keys_differ := _keys(one.config, other_arm.config):
            more = f" and {len(keys_differ) - SHOWN} more" if len(keys_differ) > SHOWN else ""
            said.append(f"The config differs in {', '.join(keys_differ[:SHOWN])}{more}.")
    return said


def _keys(a: str, b: str) -> list[str]:
    one, other = (dict(_leaves(yaml.safe_load(text))) for text in (a, b))
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict) or not tree:
        return [(path, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}".lstrip("."))]


def comparison(name: str, one: Arm, other: Arm) -> Table:
    """Times of every work, whole and by stage, and peak memory."""
    cells = [["work", "batch", "stage", "A ms", "B ms", "B / A", "A peak MiB", "B peak MiB", "B / A"]]
    notes = []
    for which, arm in (("A", one), ("B", other)):
        notes += [f"{which} was not measured: {arm.refused}"] if arm.refused else []
    keys = list(dict.fromkeys((work.kind, work.batch) for arm in (one, other) for work in arm.works))
    for kind, batch in keys:
        pair = one.find(kind, batch), other.find(kind, batch)
        if pair[0] and pair[1]:
            cells += _rows(pair[0], pair[1])
        else:
            lacking = " and ".join(which for which, work in zip("AB", pair, strict=True) if work is None)
            notes.append(f"{kind}, batch {batch}: not measured in {lacking}")
    return Table(name, cells, notes)


def _rows(a: Work, b: Work) -> list[list[str]]:
    rows = list(dict.fromkeys([*a.rows(), *b.rows()]))
    found = [_row(a, b, "whole", tuple(a.stages), tuple(b.stages))]
    return found + [_row(a, b, row, a.rows().get(row, ()), b.rows().get(row, ())) for row in rows]


def _row(a: Work, b: Work, name: str, mine: tuple[str, ...], theirs: tuple[str, ...]) -> list[str]:
    times, peaks = [a.time(*mine), b.time(*theirs)], [_peak(a, mine), _peak(b, theirs)]
    memory = [NONE if peak is None else f"{peak / 2**20:,.1f}" for peak in peaks]
    return [a.kind, str(a.batch), name, *(f"{1000 * time:,.2f}" for time in times), _ratio(*times), *memory, _ratio(*peaks)]


def _peak(work: Work, stages: tuple[str, ...]) -> float | None:
    return max((work.peak[name] for name in stages if work.peak and name in work.peak), default=None)


def _ratio(a: float | None, b: float | None) -> str:
    return f"{b / a:.2f}" if a and b is not None else NONE
