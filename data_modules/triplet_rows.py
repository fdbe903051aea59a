"""The rows of a user's own CSV or JSONL file, one at a time, with errors that say file and line."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

SPLITS = ("train", "val", "test")
TEXTS, LISTS = ("reference", "caption", "target", "split", "category", "id"), ("targets", "subset")
SEPARATORS = ",;\t"
BAR = "|"  # between the names in one CSV cell: Windows allows it in no file name, and elsewhere hardly anybody uses it


@dataclass(frozen=True, slots=True)
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
    for line, record in _records(path):
        row = _row(record, line, f"{path}, line {line}")
        if "id" in record and (before := lines_of.setdefault(row.id, line)) != line:
            raise UserError(f"{row.place}: the id {row.id!r} is that of line {before}, too; give every row its own, or none")
        yield row
    if not line:
        raise UserError(f"{path} has no rows; write one line for each triplet of reference, caption and target")


def unused_columns(path: Path) -> tuple[str, ...]:
    """Columns of the first row that nothing here reads.

    Raises:
        UserError: see :func:`read_rows`.
    """
    _, first = next(_records(path), (0, {}))
    return tuple(name for name in first if name not in TEXTS + LISTS)


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
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


def _csv_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """First line and cells of each row by column, empty cells left out; the separator is that of the header."""
    lines = _lines(path)
    header = next(lines, "")
    separator = max(SEPARATORS, key=header.count)
    columns = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
    _check_columns(columns, f"{path}, line 1", " in columns that commas, semicolons or tabs separate")
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 2
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f'{path}, line {line}: broken CSV ({error}); close every ", and write "" for one inside a text') from error
        if cells and len(cells) != len(columns):
            raise UserError(
                f"{path}, line {line} has {len(cells)} fields, but the header has {len(columns)} ({', '.join(columns)}); put a text "
                f'with {separator!r} or a line break inside into "..."'
            )
        record = {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if cell.strip()}
        if record:
            yield line, {name: _split(cell) if name in LISTS else cell for name, cell in record.items()}


def _split(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(BAR)]


def _json_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and object of each line, keys with null left out."""
    for line, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {line}, column {error.colno}: broken JSON ({error.msg}); mend it there") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {line}: {text.strip()[:40]!r} is no JSON object; write one {{...}} with all its keys per line")
        _check_columns(list(record), f"{path}, line {line}")
        yield line, {name: value for name, value in record.items() if value is not None}


def _check_columns(columns: Sequence[str], place: str, how: str = "") -> None:
    has = f"it has {', '.join(map(repr, columns)) or 'nothing'}; needed are reference, caption, and target or targets{how}"
    for name in ("reference", "caption"):
        if name not in columns:
            raise UserError(f"{place}: no {name!r}; {has}")
    if ("target" in columns) == ("targets" in columns):
        raise UserError(f"{place}: {'both' if 'target' in columns else 'neither'} 'target' and 'targets'; {has}, one of the two")
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise UserError(f"{place}: the column {twice[0]!r} comes twice; rename or delete one")


def _row(record: Mapping[str, Any], line: int, place: str) -> Row:
    texts = {name: _text(record[name], name, place) for name in TEXTS if name in record}
    lists = {name: _names(record[name], name, place) for name in LISTS if name in record}
    targets = lists.get("targets") or ((texts["target"],) if "target" in texts else ())
    for name, value in (("reference", texts.get("reference")), ("caption", texts.get("caption")), ("target", targets)):
        if not value:
            raise UserError(f"{place}: empty {name}; fill it in, or delete the row")
    subset = lists.get("subset", ())
    if subset and targets[0] not in subset:
        raise UserError(f"{place}: the subset does not have the target {targets[0]!r}; add it to the subset")
    if subset and targets[0] == texts["reference"]:
        raise UserError(f"{place}: the target {targets[0]!r} is the reference, which no subset is searched for; leave the subset empty")
    split = texts.get("split") or "train"
    if split not in SPLITS:
        raise UserError(f"{place}: split {split!r} is none of {', '.join(SPLITS)}; correct it")
    return Row(
        place=place,
        id=texts.get("id") or str(line),
        reference=texts["reference"],
        caption=texts["caption"],
        targets=targets,
        subset=subset,
        split=split,
        category=texts.get("category", ""),
    )


def _text(value: object, name: str, place: str) -> str:
    if name == "id" and isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{place}: {name!r} is {str(value)[:40]}, not a text; put it into quotes")
    return value.strip()


def _names(value: object, name: str, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise UserError(f"{place}: {name!r} is {str(value)[:60]}, not a list of picture names without empty ones; correct it")
    return tuple(dict.fromkeys(value))
