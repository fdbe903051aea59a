"""Fashion-IQ's lists of links, and the list of those that are dead."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from data_modules.errors import UserError
from data_modules.folders import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

LISTS = "asin2url.*.txt"
HEADER = "picture\turl\treason\tdate\n"
WHERE = "get Fashion-IQ's lists from https://github.com/hongwang600/fashion-iq-metadata, folder image_url, and name them with --links"


@dataclass(frozen=True, slots=True)
class Link:
    """Where a picture can be fetched.

    Attributes:
        picture: its name, letters, digits, ``_`` and ``-`` only.
        url: an http or https address.
    """

    picture: str
    url: str

    @property
    def host(self) -> str:
        """Who is asked for it."""
        return self.url.split("/")[2]


def read_links(places: Sequence[Path]) -> list[Link]:
    """All links of lists with lines like ``B00CQL7BEE <tab> http://...``, each picture once.

    Args:
        places: files, and folders with files ``asin2url.*.txt``.

    Raises:
        UserError: there is no list, all are empty, or a line is not as it should be.
    """
    links: dict[str, Link] = {}
    for file in (file for place in places for file in sorted(place.glob(LISTS)) or [place]):
        for number, line in _lines(file, WHERE):
            link = _parse(line, f"{file}, line {number}")
            if links.setdefault(link.picture, link) != link:
                raise UserError(f"{file}, line {number}: picture {link.picture} had another link before; delete one of the two lines")
    if not links:
        raise UserError(f"no links in {', '.join(map(str, places))}; {WHERE}")
    return list(links.values())


def _lines(file: Path, remedy: str) -> Iterator[tuple[int, str]]:
    """Numbers, from 1, and text of the lines that are not empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); {remedy}") from error
    except IsADirectoryError as error:
        raise UserError(f"no file {LISTS} in folder {file}; {remedy}") from error
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}); {remedy}") from error
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _parse(line: str, place: str) -> Link:
    words = line.split()
    if len(words) != 2 or not re.fullmatch(r"[A-Za-z0-9_-]+", words[0]):  # they become file names
        raise UserError(f"{place}: {line.strip()!r} is not a picture name and a link; mend or delete the line")
    if not words[1].lower().startswith(("http://", "https://")):
        raise UserError(f"{place}: {words[1]!r} is not an http or https link; mend or delete the line")
    return Link(*words)


class DeadLinks:
    """A file of links that are not to be tried again: picture, url, reason and date, separated by tabs.

    Args:
        file: it need not exist.

    Raises:
        UserError: the file is not as it should be.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._rows = dict(self._read()) if file.exists() else {}

    def _read(self) -> Iterator[tuple[Link, tuple[str, str]]]:
        for number, line in _lines(self.file, "delete it: all links are then tried again"):
            match line.split("\t"):
                case [picture, url, reason, date]:
                    if number > 1:
                        yield Link(picture, url), (reason, date)
                case _:
                    raise UserError(f"{self.file}, line {number}: {line!r} has not four columns with tabs between; delete the line")

    def reason(self, link: Link) -> str:
        """Why a link is dead; empty if it is not."""
        return self._rows.get(link, ("", ""))[0]

    def add(self, reasons: Mapping[Link, str]) -> None:
        """Note dead links, as of today, at the file's end: what a killed run has found is not lost."""
        rows = {link: (reason, str(datetime.now(UTC).date())) for link, reason in reasons.items()}
        self._rows |= rows
        header = "" if self.file.exists() else HEADER
        with self.file.open("a", encoding="utf-8") as file:
            file.write(header + _table(rows))

    def forget(self, links: Iterable[Link]) -> None:
        """Let links be tried again."""
        for link in links:
            self._rows.pop(link, None)
        replace_file(self.file, lambda part: part.write_text(HEADER + _table(self._rows), encoding="utf-8"))


def _table(rows: Mapping[Link, tuple[str, str]]) -> str:
    return "".join("\t".join((link.picture, link.url, *cells)) + "\n" for link, cells in rows.items())
