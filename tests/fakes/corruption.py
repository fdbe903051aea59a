"""Damage to files as disks, cables and killed programs do it, and what comes of reading such files. All of it follows from a seed."""

from __future__ import annotations

import re
import signal
import string
import traceback
from collections import Counter
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DAMAGES = ("bit", "letter", "byte", "bytes", "truncated", "zeroed", "repeated", "doubled", "inserted", "empty")
LETTERS = string.digits + string.ascii_letters
HEADER = 512  # bytes at a file's beginning that half of the damage is drawn into: there it does most
LIMIT = 10  # seconds for one input
LOST = {"truncated", "empty"}  # what has made the file shorter


def damage(content: bytes, kind: str, draw: Random) -> bytes:
    """The content with one piece of damage; it differs from the content.

    Args:
        content: of a file, not empty.
        kind: one of ``DAMAGES``.
        draw: random numbers.
    """
    while (damaged := _damage(content, kind, draw)) == content:
        pass
    return damaged


def _damage(content: bytes, kind: str, draw: Random) -> bytes:
    at = draw.randrange(min(HEADER, len(content)) if draw.random() < 0.5 else len(content))
    end = min(len(content), at + draw.choice((4, 16, 64, 512)))
    before, block, after = content[:at], content[at:end], content[end:]
    match kind:
        case "bit":
            return before + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        case "letter":  # what stays valid JSON, CSV or YAML
            at = draw.choice([at for at, byte in enumerate(content) if chr(byte) in LETTERS] or [0])
            return content[:at] + draw.choice(LETTERS).encode() + content[at + 1 :]
        case "byte":
            return before + draw.randbytes(1) + content[at + 1 :]
        case "bytes":
            return before + draw.randbytes(len(block)) + after
        case "truncated":
            return before
        case "zeroed":
            return before + bytes(len(block)) + after
        case "repeated":  # in the place of what follows, as a disk does it that writes a sector twice
            return (before + block + block)[: len(content)] + content[end + len(block) :]
        case "doubled":
            return before + block + block + after
        case "inserted":
            return before + draw.randbytes(len(block)) + block + after
        case _:
            return b""


class Hang(BaseException):
    """An input took longer than ``LIMIT``; no handler of ordinary errors takes it for one of these."""


class Outcome(NamedTuple):
    """What came of an input.

    Attributes:
        refused: the sentence of the UserError; empty if there was none.
        failure: a hang, or the last line of a traceback and where it was; empty if there was none.
        result: what was read.
    """

    refused: str = ""
    failure: str = ""
    result: Any = None


def attempt(read: Callable[[], Any], limit: float) -> Outcome:
    """Read an input.

    Args:
        read: it.
        limit: seconds until it counts as a hang.
    """
    try:
        with _alarm(limit):
            return Outcome(result=read())
    except UserError as error:
        return Outcome(refused=str(error))
    except Hang:
        return Outcome(failure="hang")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(failure=f"traceback: {type(error).__name__}: {error} ({place.filename}, line {place.lineno})")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def same(one: Any, other: Any) -> bool:
    """Whether two trees of tensors and plain values are equal."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Tally:
    """Counts inputs by group, and keeps what went wrong.

    Args:
        limit: seconds until an input counts as a hang.

    Attributes:
        inputs: group -> how many.
        outcomes: group and what came of it -> how many.
        failures: group, seed, damage, file and what went wrong, a line each.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self.inputs: Counter[str] = Counter()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.failures: list[str] = []

    def feed(
        self,
        group: str,
        path: Path,
        count: int,
        read: Callable[[], Any],
        judge: Callable[[Any, str], str],
        *names: str,
    ) -> None:
        """Damage a file in several ways, and put it back.

        Args:
            group: of inputs.
            path: the file.
            count: of damages, of all kinds in turn.
            read: what reads it.
            judge: what is wrong with a result after this kind of damage, ``silent drop`` or ``wrong`` first; empty if nothing is.
            names: one of these must be in a sentence that refuses it; by default the file's name.
        """
        whole, name = path.read_bytes(), re.sub("[0-9a-f]{12,}", "", path.name)  # hashes may be of temporary folders
        for number in range(count):
            seed, kind = f"{name} {number}", DAMAGES[number % len(DAMAGES)]
            path.write_bytes(damage(whole, kind, Random(seed)))
            outcome = attempt(read, self.limit)
            wrong = outcome.failure or ("" if outcome.refused else judge(outcome.result, kind))
            if outcome.refused and not any(name in outcome.refused for name in names or (path.name,)):
                wrong = f"unnamed: {outcome.refused}"
            self.inputs[group] += 1
            self.outcomes[group, wrong.partition(":")[0] or ("refused" if outcome.refused else "read")] += 1
            if wrong:
                self.failures.append(f"{group}, seed {seed!r}, {kind}: {wrong}")
        path.write_bytes(whole)

    def __str__(self) -> str:
        groups = ", ".join(f"{group} {count}" for group, count in self.inputs.items())
        bad = Counter(failure for _, failure in self.outcomes.elements())
        return (
            f"corrupted inputs: {self.inputs.total():,} ({groups}): {bad['silent drop']} silent drops, {bad['hang']} hangs, "
            f"{bad['traceback']} tracebacks, {bad['wrong'] + bad['unnamed']} wrong or unnamed"
        )
