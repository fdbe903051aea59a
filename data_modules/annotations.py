"""Annotation files and picture folders of benchmarks: reading them with errors that say file, line and remedy."""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_modules.errors import UserError
from data_modules.json_text import parse
from data_modules.validation import UNFIT, is_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

SUFFIXES = (".png", ".jpg", ".jpeg")
_NO_NAME = re.compile(rf"^$|(^|/)(/|\.\.(/|$))|[{UNFIT}]")


def find_file(root: Path, candidates: Sequence[str], benchmark: str) -> Path:
    """The first of some places of a file that exists; a benchmark's files lie differently in different projects.

    Args:
        root: folder of the data set.
        candidates: paths below it, the official one first.
        benchmark: name for the message.

    Raises:
        UserError: none exists.
    """
    for candidate in candidates:
        if (root / candidate).is_file():
            return root / candidate
    others = f" (nor {', '.join(repr(c) for c in candidates[1:])})" if len(candidates) > 1 else ""
    raise UserError(
        f"{benchmark}: no file {candidates[0]!r}{others} under root={str(root)!r}; set --data.root to the data set's folder, "
        f"or see cir data download {benchmark} for where to get it"
    )


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; get the file again, or save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it cannot be read, is not UTF-8, or see :func:`data_modules.json_text.parse`.
    """
    return parse(read_text(path), path, "get the file again, or mend it there")


def read_records(
    path: Path,
    fields: Mapping[str, type],
    what: str,
    *,
    inside: str = "",
    optional: Collection[str] = (),
    blank: Collection[str] = (),
    unique: str = "",
) -> list[dict[str, Any]]:
    """The records of an annotation file: a JSON list of objects that all have certain fields.

    Args:
        path: the file.
        fields: name of each field -> type of its value; a text must not be empty.
        what: which file it should be, for the message: ``Fashion-IQ captions``.
        inside: key of the list, in a file that is an object; empty where it is the list itself.
        optional: fields that a record need not have.
        blank: fields whose text may be empty.
        unique: field whose values must differ; empty if there is none.

    Raises:
        UserError: it is another kind of file; the first record that does not fit is named.
    """
    content = read_json(path)
    records = content.get(inside) if inside and isinstance(content, dict) else None if inside else content
    if not isinstance(records, list):
        lacks = f" without a list {inside!r}" if inside else ""
        raise UserError(
            f"{path}: a JSON {type(content).__name__}{lacks}, not the list that {what} are; is it the file of another benchmark?"
        )
    first: dict[Any, int] = {}
    for number, record in enumerate(records):
        flaw = _flaw(record, fields, what, optional, blank)
        if unique and not flaw and (before := first.setdefault(record[unique], number)) != number:
            flaw = f"{unique} {record[unique]!r} is that of record {before}, too; get the file again, or take one out"
        if flaw:
            raise UserError(f"{path}, record {number}: {flaw}")
    return records


def _flaw(record: Any, fields: Mapping[str, type], what: str, optional: Collection[str], blank: Collection[str]) -> str:
    """What is wrong with a record; empty if nothing is."""
    if not isinstance(record, dict):
        return f"{str(record)[:60]!r} is no object, as the records of {what} are; is it another file?"
    for field, kind in fields.items():
        value = record.get(field)
        if type(value) is not kind:  # true is no number
            if field in record:
                return f"{field}={value!r:.60}, unlike {what}; is it the file of another benchmark or version?"
            if field not in optional:
                has = " ".join(", ".join(sorted(record)).split())
                return f"no {field!r} (it has {has:.200}), unlike {what}; is it the file of another benchmark or version?"
        elif isinstance(value, str) and (flaw := _flaw_of_text(value, field, may_be_blank=field in blank)):
            return flaw
    return ""


def _flaw_of_text(text: str, field: str, *, may_be_blank: bool) -> str:
    if not is_text(text):
        return f"{field}={text!a:.60} has a NUL or half of a character; get the file again, or mend it there"
    return "" if may_be_blank or text.strip() else f"empty {field}; write one, or take the record out"


def read_names(path: Path, what: str) -> list[str]:
    """Distinct picture names: a JSON list, or the lines of a file ``.txt``.

    Raises:
        UserError: it is another kind of file, a name comes twice, or see :func:`require_names`.
    """
    names = read_text(path).split() if path.suffix == ".txt" else read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: not a JSON list of names, as {what} is; is it the file of another benchmark?")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise UserError(f"{path}: the name {twice!r} comes twice; get the file again, or take one out")
    require_names(names, path)
    return names


def require_names(names: Iterable[str], path: Path) -> None:
    """Refuse names of pictures that lead out of the folder of pictures, and what is no name.

    Args:
        names: with or without folders before them.
        path: the file that has them, for the message.

    Raises:
        UserError: a name is empty or absolute, or has ``..`` or something that :data:`data_modules.validation.UNFIT` lists.
    """
    if (wrong := next(filter(_NO_NAME.search, names), None)) is not None:
        raise UserError(f"{path}: {wrong!r:.80} is no name of a picture in the data set's folder; get the file again, or mend it there")


class PictureFolder:
    """Finds picture files by name, whatever their suffix; each folder is listed once.

    Args:
        root: folder of the data set.
        folders: folders below it that the pictures may lie in, the official one first.
    """

    def __init__(self, root: Path, folders: Sequence[str] = ("images",)) -> None:
        self.root, self.folders = root, folders

    @cached_property
    def folder(self) -> Path:
        """The first of the folders that exists; the official one if none does."""
        return next((self.root / name for name in self.folders if (self.root / name).is_dir()), self.root / self.folders[0])

    def path(self, name: str, *inside: str) -> Path:
        """File of a picture; if there is none, where it should be.

        Args:
            name: of the file, with or without suffix.
            inside: folders below the pictures' folder that it may lie in, the official one first; by default that folder itself.

        Raises:
            UserError: the file is a symbolic link that leads out of the pictures' folder.
        """
        places = [self._list(place) for place in inside or ("",)]
        for folder, files in places:
            for suffix in ("", *SUFFIXES):
                if (file := name + suffix) in files:
                    path = folder / file
                    if files[file]:
                        _refuse_escape(path, self.folder)
                    return path
        return places[0][0] / (name if name.lower().endswith(SUFFIXES) else name + SUFFIXES[0])

    @cached_property
    def _listed(self) -> dict[str, tuple[Path, dict[str, bool]]]:
        return {}

    def _list(self, place: str) -> tuple[Path, dict[str, bool]]:
        """A folder below the pictures' folder, and the name of each of its files -> whether it is a symbolic link."""
        if place not in self._listed:
            folder = self.folder / place
            entries = os.scandir(folder) if os.path.isdir(folder) else ()  # noqa: PTH112 - pathlib's raises for a name that is too long
            self._listed[place] = folder, {entry.name: entry.is_symlink() for entry in entries}
        return self._listed[place]


def _refuse_escape(path: Path, folder: Path) -> None:
    real = Path(os.path.realpath(path))  # pathlib raises for a link to itself; here it is a file that does not exist
    if not real.is_relative_to(folder.resolve()):
        raise UserError(
            f"{path} is a symbolic link out of its folder, to {real}; copy the picture there, or make {folder.name!r} itself the link"
        )
