"""``cir data download``: fetches Fashion-IQ's pictures, and says where those of the other benchmarks are."""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cir_lightning import __version__
from cir_lightning.data_cli import Refusing
from data_modules.errors import UserError
from data_modules.sources import FASHIONIQ, SOURCES

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from data_modules.download import Result

NAMES = (FASHIONIQ, *SOURCES)
DOWNLOAD = """\
Fetch Fashion-IQ's pictures into ROOT/images from the data set's own lists of links, which lie in
https://github.com/hongwang600/fashion-iq-metadata, folder image_url; after an interruption, the same command goes on. Of the other
benchmarks, say where their pictures are. Exit code: 0 if every picture is there, 1 if not, 2 for a mistake."""


def run(argv: list[str]) -> int:
    """Fetch pictures, or say where they are.

    Args:
        argv: name of the benchmark and options.

    Returns:
        The exit code: 0 if every picture is there, 1 if not.

    Raises:
        UserError: an option is wrong, or see :func:`data_modules.download.download`.
    """
    parser = _Parser(prog="cir data download", description=DOWNLOAD, allow_abbrev=False)
    _add_options(parser)
    options = parser.parse_args(argv)
    root = options.root or Path("data") / options.name
    if options.name in SOURCES:
        print(SOURCES[options.name].format(root=root))
        return 0
    if options.name != FASHIONIQ:
        raise UserError(f"unknown benchmark {options.name!r}; there are {', '.join(NAMES)}")
    return _fetch(root, options)


class _Parser(Refusing, argparse.ArgumentParser):
    pass


def _number(kind: type[int | float], low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * (kind is int)}number from {low} to {high}")
        return value

    return parse


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--root", type=Path, help="folder of the data set (default: data/NAME)")
    parser.add_argument("--links", type=Path, nargs="+", help="lists of links, or folders of them (default: ROOT/image_url)")
    add_number = partial(parser.add_argument, metavar="N")
    add_number("--jobs", type=_number(int, 1, 64), default=8, help="downloads at a time (default: %(default)s)")
    add_number("--rate", type=_number(float, 0.01, 1000), default=10, help="requests per second, all together (default: %(default)s)")
    add_number("--timeout", type=_number(float, 0.1, 3600), default=20, help="seconds that an answer may take (default: %(default)s)")
    add_number("--retries", type=_number(int, 0, 20), default=4, help="tries after the first (default: %(default)s)")
    parser.add_argument("--retry-dead", action="store_true", help="try the links in ROOT/dead_links.tsv again")


def _fetch(root: Path, options: argparse.Namespace) -> int:
    from data_modules.download import download
    from data_modules.fetch import Fetcher, Pace
    from data_modules.links import read_links

    links = read_links(options.links or [root / "image_url"])
    fetcher = Fetcher(f"cir-lightning/{__version__}", Pace(options.rate), timeout=options.timeout, retries=options.retries)
    try:
        tally = download(links, root, fetcher, jobs=options.jobs, retry_dead=options.retry_dead)
    except KeyboardInterrupt:
        print("cir: stopped; the same command goes on", file=sys.stderr)
        raise
    print(_summary(tally, root))
    return 1 if any(result in {"dead", "failed"} for result, _ in tally) else 0


def _summary(tally: Counter[tuple[Result, str]], root: Path) -> str:
    from data_modules.download import totals

    counts = totals(tally)
    lines = [
        f"{tally.total():,} pictures: {counts['there']:,} were there, {counts['fetched']:,} fetched, {counts['dead']:,} dead, "
        f"{counts['failed']:,} failed"
    ]
    lines += [f"  {count:>6,} {result}: {reason}" for (result, reason), count in tally.most_common() if reason]
    if counts["failed"]:
        lines.append("The same command tries the failed ones again.")
    if counts["dead"]:
        lines.append(f"Dead links stand in {root / 'dead_links.tsv'} and are tried again with --retry-dead only.")
        lines.append(f"Ask the data set's authors or colleagues for their pictures, and put them into {root / 'images'}.")
    return "\n".join(lines)
