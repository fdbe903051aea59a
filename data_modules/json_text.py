"""JSON that is read strictly: what Python alone would take silently, or leave with a traceback, is refused with its place."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def parse(text: str, path: Path, remedy: str, line: int | None = None) -> Any:
    """The content of a JSON text.

    Args:
        text: JSON.
        path: the file that it is from, for the message.
        remedy: for the message.
        line: the line of the file, where the text is one line of it.

    Raises:
        UserError: the JSON is broken, nested too deep, or has a key twice or a number of thousands of digits.
    """
    place = f"{path}, line {line}" if line else f"{path}"
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {line or error.lineno}, column {error.colno}: broken JSON ({error.msg}); {remedy}") from error
    except KeyError as error:
        raise UserError(f"{place}: the key {error.args[0]!r} comes twice in one object; {remedy}") from error
    except RecursionError as error:
        raise UserError(f"{place}: lists or objects are nested too deep; {remedy}") from error
    except ValueError as error:  # Python's own limit
        raise UserError(f"{place}: a whole number has thousands of digits; {remedy}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise KeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return content
