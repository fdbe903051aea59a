"""Names for the stages of a step, so that ``cir bench`` can tell where time goes; nothing happens at them unless somebody observes.

Light: no torch, since every part of the model imports it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

READ: Final = "read and decode"
TRANSFORM: Final = "transform"
TOWER: Final = "vision tower"
FEATURES: Final = "read features"
CONNECTOR: Final = "Connector"
TEMPLATE: Final = "template"
CAPTION: Final = "caption"
LLM: Final = "LLM forward"
POOLING: Final = "pooling"
GATHER: Final = "gather"
LOSS: Final = "loss"
BACKWARD: Final = "backward"
OPTIMIZER: Final = "optimizer"
RANKING: Final = "ranking"


class Observer(Protocol):
    """Is told of every stage that begins and ends; stages lie within each other."""

    def enter(self, name: str) -> None:
        """A stage begins."""

    def leave(self) -> None:
        """The stage that began last ends."""


_NOTHING = nullcontext()
_observer: Observer | None = None


def stage(name: str) -> AbstractContextManager[None]:
    """Mark what runs within as a stage; not within what is compiled."""
    return _NOTHING if _observer is None else _told(_observer, name)


@contextmanager
def _told(observer: Observer, name: str) -> Iterator[None]:
    observer.enter(name)
    try:
        yield
    finally:
        observer.leave()


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Let an observer see the stages of all threads of this process; one at a time."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before
