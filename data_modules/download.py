"""Fetching Fashion-IQ's pictures from the data set's own lists of links. Needs neither torch nor Lightning."""

from __future__ import annotations

import re
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from io import BytesIO
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout
from tqdm import tqdm

from data_modules.errors import UserError
from data_modules.fetch import GONE, Failure
from data_modules.folders import replace_file
from data_modules.links import DeadLinks
from data_modules.picture_files import open_picture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from data_modules.fetch import Fetcher
    from data_modules.links import Link

Result = Literal["there", "fetched", "dead", "failed"]
FORMATS = ("JPEG", "PNG", "GIF", "WEBP")  # what shops serve; Pillow's other readers are not for strangers' files
SUFFIXES = (".jpg", ".png")
STREAK = 25  # links in a row without a sign of life, after which a host is not asked again
ALIVE = {f"HTTP {code}" for code in GONE}  # answers that only a host in good order gives
PART = re.compile(r"\.[\w-]+\.(jpg|png)\.\d+")  # what replace_file writes first


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one link.

    Attributes:
        link: the link.
        result: ``there`` before, ``fetched``, ``dead`` (not tried again by the next run) or ``failed`` (tried again).
        reason: why there is no picture; empty if there is.
        asked: whether this run has asked for it.
    """

    link: Link
    result: Result
    reason: str = ""
    asked: bool = False


def download(
    links: Sequence[Link], root: Path, fetcher: Fetcher, *, jobs: int = 8, retry_dead: bool = False
) -> Counter[tuple[Result, str]]:
    """Fetch pictures into ``<root>/images``, with a progress bar; what is there and whole is not fetched again.

    Pictures keep their bytes and are called ``<name>.png`` if they are PNG, else ``<name>.jpg``: readers go by the content. Dead links
    are noted in ``<root>/dead_links.tsv``. After Ctrl-C no file is half there, and the next run goes on.

    Args:
        links: one for each picture.
        root: folder of the data set.
        fetcher: gets the files.
        jobs: downloads at a time.
        retry_dead: whether links that earlier runs found dead are tried again.

    Returns:
        How many links had each result, and for what reason.

    Raises:
        UserError: the folder cannot be written, or another run is at work in it.
    """
    images = root / "images"
    try:
        images.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock", timeout=0):
            for part in images.glob(".*"):
                if PART.fullmatch(part.name):
                    part.unlink()
            dead = DeadLinks(root / "dead_links.tsv")
            if retry_dead:
                dead.forget(links)
            run = _Run(images, fetcher, dead)
            run.fetch(links, jobs)
    except Timeout as error:
        raise UserError(f"another download is at work in {root}; wait for its end or stop it") from error
    except OSError as error:
        raise UserError(f"cannot write {error.filename or root} ({error.strerror}); choose another folder with --root") from error
    return run.tally


class _Run:
    """One run over a list of links.

    Links are dead only once their host shows a sign of life after them: an hour without network, or behind a log-in page, would else
    make every link a dead one. A host with ``STREAK`` failures in a row is not asked any more.
    """

    def __init__(self, images: Path, fetcher: Fetcher, dead: DeadLinks) -> None:
        self.images, self.fetcher, self.dead = images, fetcher, dead
        self.tally: Counter[tuple[Result, str]] = Counter()
        self._streaks: defaultdict[str, list[Outcome]] = defaultdict(list)
        self._given_up: set[str] = set()
        self._writing, self._stopped = threading.Lock(), False

    def fetch(self, links: Sequence[Link], jobs: int) -> None:
        with tqdm(total=len(links), desc="pictures", unit="picture") as bar, ThreadPool(jobs) as pool:
            try:
                for outcome in pool.imap_unordered(self._get, links):
                    self._note(outcome)
                    bar.set_postfix(totals(self.tally), refresh=False)
                    bar.update()
            finally:
                with self._writing:  # from here on no thread writes, though some may still wait for an answer
                    self._stopped = True
        for host in list(self._streaks):
            self._settle(host)

    def _get(self, link: Link) -> Outcome:
        """One thread's work on one link."""
        if any(_is_picture(path) for path in self._paths(link)):
            return Outcome(link, "there")
        if reason := self.dead.reason(link):
            return Outcome(link, "dead", reason)
        if link.host in self._given_up:
            return Outcome(link, "failed", f"{link.host} gave no sign of life and was not asked any more")
        try:
            self._keep(link, self.fetcher.fetch(link.url))
        except Failure as failure:
            return Outcome(link, "dead" if failure.dead else "failed", failure.reason, asked=True)
        return Outcome(link, "fetched", asked=True)

    def _paths(self, link: Link) -> list[Path]:
        return [self.images / f"{link.picture}{suffix}" for suffix in SUFFIXES]

    def _keep(self, link: Link, body: bytes) -> None:
        """Put a picture in its place, and a broken one that is there out of the way."""
        jpg, png = self._paths(link)
        path, other = (png, jpg) if _format(body) == "PNG" else (jpg, png)
        with self._writing:
            if not self._stopped:
                replace_file(path, lambda part: part.write_bytes(body))
                other.unlink(missing_ok=True)

    def _note(self, outcome: Outcome) -> None:
        if not outcome.asked:
            self.tally[outcome.result, outcome.reason] += 1
            return
        streak = self._streaks[outcome.link.host]
        streak.append(outcome)
        if outcome.result == "fetched" or outcome.reason in ALIVE:
            self._settle(outcome.link.host)
        elif len(streak) >= STREAK:
            self._given_up.add(outcome.link.host)

    def _settle(self, host: str) -> None:
        streak = self._streaks.pop(host)
        if host in self._given_up:
            streak = [replace(outcome, result="failed") if outcome.result == "dead" else outcome for outcome in streak]
        self.tally.update((outcome.result, outcome.reason) for outcome in streak)
        if dead := {outcome.link: outcome.reason for outcome in streak if outcome.result == "dead"}:
            self.dead.add(dead)


def totals(tally: Counter[tuple[Result, str]]) -> Counter[str]:
    """How many links had each result, whatever the reason."""
    counts: Counter[str] = Counter()
    for (result, _), count in tally.items():
        counts[result] += count
    return counts


def _is_picture(path: Path) -> bool:
    try:
        with open_picture(path) as image:
            image.load()
    except UserError:
        return False
    return True


def _format(body: bytes) -> str | None:
    """Pillow's name of a picture's format.

    Raises:
        Failure: it is no picture, is damaged or too large, or is the single pixel that shops send in place of a picture.
    """
    try:
        with open_picture(BytesIO(body), FORMATS) as image:
            image.load()
    except UserError as error:
        raise Failure("not a readable picture", again=False, dead=True) from error
    if max(image.size) == 1:
        raise Failure("a single pixel instead of a picture", again=False, dead=True)
    return image.format
