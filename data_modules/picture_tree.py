"""A user's own folder of pictures: files by path, whichever way their accents are written.

Paths are plain text inside: pathlib would take minutes over a million pictures.
"""
# ruff: noqa: PTH112, PTH118, PTH120

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

# HEIC is among them although Pillow does not read it: a telephone's pictures must not be left out of a gallery without a word.
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"))
RUNS = "runs"  # what ``cir fit`` leaves in the folder that it is started in: its picture grids are not the user's pictures


class PictureTree:
    """The files below a folder by name: their path below it with slashes, its accents composed (NFC). macOS writes them decomposed.

    Args:
        root: the folder, an absolute path.
        beside: the folder of the file that names pictures, not outside ``root``.
        pictures: the folder of pictures, not outside ``root``; it may be a symbolic link.

    Attributes:
        paths: file of every picture that was asked for; where it should be, if there is none.
    """

    def __init__(self, root: Path, beside: Path, pictures: Path) -> None:
        self.root, self.beside, self.pictures = map(str, (root, beside, pictures))
        self.paths: dict[str, Path] = {}
        self._names: dict[str, str] = {}
        self._folders = {self.root: self.root}
        self._listed: dict[str, dict[str, os.DirEntry[str]]] = {}

    def find(self, written: str, place: str) -> str:
        """The name of a picture.

        Args:
            written: its path, relative to ``beside`` or, where it is not there, to ``pictures``.
            place: file and line that have it, for messages.

        Raises:
            UserError: the path, or a symbolic link on it, leads out of the folder.
        """
        if written not in self._names:
            self._names[written] = self._look_up(written, place)
        return self._names[written]

    def all(self) -> Iterator[str]:
        """Names of all pictures in the folder of pictures and the folders below it, in order; hidden files are none.

        Raises:
            UserError: a symbolic link leads out of the folder.
        """
        yield from self._below(self.pictures)

    def _look_up(self, written: str, place: str) -> str:
        paths = [os.path.normpath(os.path.join(base, written)) for base in (self.beside, self.pictures)]
        inside = [path for path in paths if path.startswith(self.root + os.sep)]
        if paths[0] not in inside:
            raise UserError(f"{place}: picture {written!r} is outside the data set's folder {self.root}; put it there")
        there = [path for path in map(self._spell, inside) if path]
        likely = [path for path in reversed(inside) if self._entries(self._folder(os.path.dirname(path)))]
        return self._remember((*there, *likely, inside[0])[0])

    def _spell(self, path: str) -> str:
        """A path as the disk writes it; empty if there is none."""
        folder, name = os.path.split(path)
        entry = self._entries(self._folder(folder)).get(normalize("NFC", name))
        if entry and entry.is_symlink():
            self._refuse_escape(entry.path)
        return entry.path if entry else ""

    def _folder(self, path: str) -> str:
        if path not in self._folders:
            self._folders[path] = self._spell(path) or path
        return self._folders[path]

    def _below(self, folder: str) -> Iterator[str]:
        for _, entry in sorted(self._entries(folder).items()):
            if entry.name.startswith(".") or entry.path == os.path.join(self.root, RUNS):
                continue
            if entry.is_symlink():
                self._refuse_escape(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from self._below(entry.path)
            elif Path(entry.name).suffix.lower() in SUFFIXES and not os.path.isdir(
                entry.path
            ):  # a link to a folder: what is in there is found there
                yield self._remember(entry.path)

    def _remember(self, path: str) -> str:
        name = normalize("NFC", path[len(self.root) + 1 :]).replace(os.sep, "/")
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            raise UserError(f"the name of picture {name!a} is not UTF-8; rename the file")
        self.paths[name] = Path(path)
        return name

    def _entries(self, folder: str) -> dict[str, os.DirEntry[str]]:
        if folder not in self._listed:
            self._listed[folder] = _list(folder)
        return self._listed[folder]

    def _refuse_escape(self, link: str) -> None:
        real = Path(os.path.realpath(link))  # pathlib raises for a link to itself; here it is a file that does not exist
        if not any(real.is_relative_to(Path(folder).resolve()) for folder in (self.root, self.pictures)):
            raise UserError(f"{link} is a symbolic link out of the data set's folder, to {real}; copy what it leads to there")


def _list(folder: str) -> dict[str, os.DirEntry[str]]:
    """What a folder has by composed name; nothing if it does not exist."""
    try:
        entries = list(os.scandir(folder)) if os.path.isdir(folder) else []
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error.strerror}); check its permissions") from error
    named: dict[str, os.DirEntry[str]] = {}
    for entry in entries:
        if (other := named.setdefault(normalize("NFC", entry.name), entry)) is not entry:
            names = f"{other.name!a} and {entry.name!a}"
            raise UserError(f"{folder} has two files whose names differ only in how accents are coded, {names}; rename or delete one")
    return named
