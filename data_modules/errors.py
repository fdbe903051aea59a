"""Errors that a user can mend. The command line prints them as one sentence, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """What was wrong (the value), where it came from (key, file, line), what to do."""
