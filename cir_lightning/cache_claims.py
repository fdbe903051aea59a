"""Who makes what: several processes fill one feature cache at once, and none does what another one is doing.

A claim is a file that lists what its owner is making; the owner holds a lock on it, which ends with the owner, also if that is killed.
Claims are looked for, made and given back under the folder's own lock; see :class:`cir_lightning.cache.FeatureCache`.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Claim(NamedTuple):
    """What one process is making.

    Attributes:
        number: larger than that of everything made or claimed before.
        lock: held.
        path: the list.
        entries: names by content.
    """

    number: int
    lock: FileLock
    path: Path
    entries: list[str]

    def give_back(self) -> None:
        """It is made, or cannot be made."""
        self.path.unlink(missing_ok=True)
        _lock_of(self.path).unlink(missing_ok=True)
        self.lock.release()


def live_claims(folder: Path) -> dict[str, Path]:
    """What others are making, by name, with the claim; those of dead processes are removed with what they left half written."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("claim-*.json")):
        lock = _lock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with contextlib.suppress(ValueError, TypeError):  # damaged: what its owner makes is then made twice
                found.update(dict.fromkeys(json.loads(path.read_text(encoding="utf-8")), path))
            continue
        number = int(path.stem.removeprefix("claim-"))
        for part in folder.glob(f".{number:05d}-*"):
            part.unlink(missing_ok=True)
        Claim(number, lock, path, []).give_back()
    return found


def claim(folder: Path, number: int, entries: Sequence[str]) -> Claim:
    """Claim what nobody has claimed."""
    path = folder / f"claim-{number:05d}.json"
    path.write_text(json.dumps(list(entries)), encoding="utf-8")
    lock = _lock(path)
    lock.acquire()
    return Claim(number, lock, path, list(entries))


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _lock(path: Path) -> FileLock:
    return FileLock(_lock_of(path))
