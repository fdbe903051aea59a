"""The rows of a user's own CSV or JSONL file, one at a time, with errors that say file and line."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from data_modules.errors import UserError
from data_modules.json_text import parse
from data_modules.validation import is_name, is_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

SPLITS = ("train", "val", "test")
TEXTS, LISTS = ("reference", "caption", "target", "split", "category", "id"), ("targets", "subset")
SEPARATORS = ",;\t"
BAR = "|"  # between the names in one CSV cell: Windows allows it in no file name, and elsewhere hardly anybody uses it

_Record = tuple[int, "dict[str, str]", "dict[str, list[str]]"]  # first line, texts by column, lists by column


@dataclass(slots=True)
class Row:
    """One row; pictures are named as the file does it.

    Attributes:
        place: file and line, for messages.
        id: the line number where the file gives none.
        reference: the reference image.
        caption: the relative caption.
        targets: all right answers, the best one first.
        subset: look-alikes, the first target among them; empty if there are none.
        split: one of ``SPLITS``.
        category: empty if there is none.
    """

    place: str
    id: str
    reference: str
    caption: str
    targets: tuple[str, ...]
    subset: tuple[str, ...]
    split: str
    category: str


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file: JSON lines if its name ends in ``.jsonl``, CSV with commas, semicolons or tabs otherwise.

    Args:
        path: a UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: the file cannot be read, has no rows, or one that is not as it should be; the line is named.
    """
    lines_of: dict[str, int] = {}
    line = 0
    for line, texts, lists in _records(path):
        row = _row(texts, lists, line, f"{path}, line {line}")
        if (before := lines_of.setdefault(row.id, line)) != line:
            given = "" if texts.get("id") else ", which a row without one has from its line number,"
            raise UserError(f"{row.place}: the id {row.id!r}{given} is that of line {before}, too; give every row its own, or none")
        yield row
    if not line:
        raise UserError(f"{path} has no rows; write one line for each triplet of reference, caption and target")


def unused_columns(path: Path) -> tuple[str, ...]:
    """Columns, or keys of the first line, that nothing here reads.

    Raises:
        UserError: see :func:`read_rows`.
    """
    _, texts, _ = next(_records(path), (0, {}, {}))
    return tuple(name for name in texts if name not in TEXTS)


def _records(path: Path) -> Iterator[_Record]:
    return _json_records(path) if path.suffix.lower() == ".jsonl" else _csv_records(path)


def _lines(path: Path) -> Iterator[str]:
    """The lines with their ends; decoded one by one, because only so it is known which one is in another encoding."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if b"\0" in raw:
                    raise UserError(f"{path}, line {number} has a NUL byte, as damaged and UTF-16 files have; save the file as UTF-8")
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        bad = f"byte 0x{error.object[error.start]:02x} after {error.object[: error.start][-20:].decode('utf-8', 'replace')!r}"
        raise UserError(f"{path}, line {number} is not UTF-8 ({bad}); save the whole file as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _csv_records(path: Path) -> Iterator[_Record]:
    """The rows; the separator is that of the header."""
    lines = _lines(path)
    header = next(lines, "")
    separator = max(SEPARATORS, key=header.count)
    rows = _csv_rows(path, chain([header], lines), separator)
    columns = [name.strip() for name in next(rows)[1]]
    _check_columns(columns, f"{path}, line 1", " in columns that commas, semicolons or tabs separate")
    for line, cells in rows:
        if cells and len(cells) != len(columns):
            raise UserError(
                f"{path}, line {line} has {len(cells)} fields, but the header has {len(columns)} ({', '.join(columns)}); put a text "
                f'with {separator!r} or a line break inside into "..."'
            )
        if any(cells):
            texts = dict(zip(columns, map(str.strip, cells), strict=True))
            yield line, texts, {name: _split(texts.pop(name)) for name in LISTS if name in texts}


def _csv_rows(path: Path, lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The first line of every row, the header among them, and its cells."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f'{path}, line {line}: broken CSV ({str(error).partition(" - ")[0]}); close every ", write "" for one inside a text, '
                "and end lines with LF or CRLF"
            ) from error


def _split(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(BAR)] if cell else []


def _json_records(path: Path) -> Iterator[_Record]:
    for line, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        place, record = f"{path}, line {line}", parse(text, path, "mend it there", line)
        if not isinstance(record, dict):
            raise UserError(f"{place}: {text.strip()[:40]!r} is no JSON object; write one {{...}} with all its keys per line")
        _check_columns(list(record), place)
        texts = {name: _text(record[name], name, place) if name in TEXTS else "" for name in record if name not in LISTS}
        yield line, texts, {name: _texts(record[name], name, place) for name in LISTS if name in record}


def _text(value: object, name: str, place: str) -> str:
    if value is None or (name == "id" and isinstance(value, int)):
        return "" if value is None else str(value)
    if not isinstance(value, str) or not is_text(value):
        raise UserError(f"{place}: {name!r} is {value!a:.40}, not a text; put one into quotes")
    return value.strip()


def _texts(value: object, name: str, place: str) -> list[str]:
    if value is not None and not isinstance(value, list):
        raise UserError(f"{place}: {name!r} is {value!a:.40}, not a list; write [...] with all names")
    return [_text(one, name, place) for one in value or ()]


def _check_columns(columns: Sequence[str], place: str, how: str = "") -> None:
    has = f"it has {', '.join(map(repr, columns)) or 'nothing'}; needed are reference, caption, and target or targets{how}"
    for name in ("reference", "caption"):
        if name not in columns:
            raise UserError(f"{place}: no {name!r}; {has}")
    if ("target" in columns) == ("targets" in columns):
        raise UserError(f"{place}: {'both' if 'target' in columns else 'neither'} 'target' and 'targets'; {has}, one of the two")
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise UserError(f"{place}: the column {twice[0]!r} comes twice; rename or delete one")


def _row(texts: Mapping[str, str], lists: Mapping[str, list[str]], line: int, place: str) -> Row:
    reference, caption, split = texts["reference"], texts["caption"], texts.get("split") or "train"
    targets, subset = lists.get("targets") or [texts.get("target", "")], lists.get("subset", [])
    if not (reference and caption and all(targets) and all(subset)):
        what = "caption" if not caption else "reference" if not reference else "target" if not all(targets) else "name in the subset"
        raise UserError(f"{place}: empty {what}; fill it in, or delete the row")
    if subset and targets[0] not in subset:
        raise UserError(f"{place}: the subset does not have the target {targets[0]!r}; add it to the subset")
    if subset and targets[0] == reference:
        raise UserError(f"{place}: the target {targets[0]!r} is the reference, which no subset is searched for; leave the subset empty")
    if unfit := [name for name in (reference, *targets, *subset, texts.get("id", ""), texts.get("category", "")) if not is_name(name)]:
        raise UserError(f"{place}: {unfit[0]!a:.80} has a control character, which no name can have; mend or rename it")
    if split not in SPLITS:
        raise UserError(f"{place}: split {split!r} is none of {', '.join(SPLITS)}; correct it")
    distinct = tuple(dict.fromkeys(targets)), tuple(dict.fromkeys(subset))
    return Row(place, texts.get("id") or str(line), reference, caption, *distinct, split, texts.get("category", ""))
