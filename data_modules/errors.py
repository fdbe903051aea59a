"""Errors that a user can mend. The command line prints them as one sentence, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """What was wrong (the value), where it came from (key, file, line), what to do.

    Args:
        sentence: that; or what torch makes of it in a loader's worker, where a traceback of the worker comes first.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence.rpartition(f"{__name__}.UserError: ")[2].rstrip("\n"))
