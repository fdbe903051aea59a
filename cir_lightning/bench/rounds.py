"""The same work again and again, each round watched by another meter, so that counting does not distort times."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile

from cir_lightning.bench.meters import Clock, Counter, Ledger, Peak, Ranges
from data_modules.stages import observed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from cir_lightning.bench.results import Work
    from cir_lightning.encoder import Encoder

WARM_UP = 2


class Rounds:
    """To be iterated over: the work is done once for every item.

    Rounds to warm up; then as many with stages timed as with nobody observing, in turn; then one in which FLOPs and tokens are counted, one
    in which memory is read, and perhaps one for torch's profiler.

    Args:
        work: takes the figures.
        encoder: built.
        device: where it works.
        rounds: to be timed.
        trace: file for torch's profiler; None for no such round.
    """

    def __init__(self, work: Work, encoder: Encoder, device: torch.device, rounds: int, trace: Path | None = None) -> None:
        self.work, self.encoder, self.device, self.rounds, self.trace = work, encoder, device, rounds, trace

    def __len__(self) -> int:
        """How often the work is done."""
        return WARM_UP + 2 * self.rounds + 1 + Peak.readable(self.device) + (self.trace is not None)

    def __iter__(self) -> Iterator[int]:
        """Watch, round by round."""
        number = 0
        for watch, times in (
            (self._nothing, WARM_UP),
            (self._timed_and_not, self.rounds),
            (self._counted, 1),
            (self._remembered, int(Peak.readable(self.device))),
            (self._traced, int(self.trace is not None)),
        ):
            for _ in range(times):
                for _ in watch():
                    yield number
                    number += 1

    def _nothing(self) -> Iterator[None]:
        yield

    def _timed_and_not(self) -> Iterator[None]:
        ledger = Ledger(Clock(self.device).lap)
        with ledger.open():
            yield
        self.work.seconds.append({name: seconds for name, (seconds,) in ledger.accounts.items()})
        clock = Clock(self.device)
        clock.lap()
        yield
        self.work.unobserved.extend(clock.lap())

    def _counted(self) -> Iterator[None]:
        counter = Counter(self.encoder)
        ledger = Ledger(counter.lap)
        with counter.open(), ledger.open():
            yield
        self.work.flops = {name: flops for name, (flops, _, _) in ledger.accounts.items()}
        self.work.tokens = {name: (real, computed) for name, (_, real, computed) in ledger.accounts.items() if computed}

    def _remembered(self) -> Iterator[None]:
        peak = Peak(self.device)
        ledger = Ledger(peak.lap, max)
        with ledger.open():
            yield
        self.work.held, self.work.peak = peak.held, {name: value for name, (value,) in ledger.accounts.items()}

    def _traced(self) -> Iterator[None]:
        cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        with profile(activities=[ProfilerActivity.CPU, *cuda]) as found, observed(Ranges()):
            yield
        assert self.trace is not None  # else it is not traced
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(self.trace))


@contextmanager
def stepping(rounds: Rounds) -> Iterator[Iterator[int]]:
    """The rounds for one who calls ``next`` whenever the work was done; whatever is open is closed at the end."""
    steps = iter(rounds)
    try:
        yield steps
    finally:
        steps.close()  # type: ignore[attr-defined]
