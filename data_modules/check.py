"""What there is of a benchmark before anything is trained: records against the official counts, picture files, and whether they open."""

# ruff: noqa: PTH113 - unlike Path.is_file, os.path.isfile has an answer for a folder that may not be searched

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from data_modules.errors import UserError
from data_modules.folders import replace_file
from data_modules.images import cut, load_image
from data_modules.missing import UNREADABLE
from data_modules.validation import validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from data_modules.base import CIRDataModule
    from data_modules.records import Benchmark

MISSING = "missing.tsv"  # in the folder of the data set, as UNREADABLE
CHUNK = 1024  # pictures that wait for a thread at a time
Box = tuple[int, int, int, int] | None  # of a picture that is a part of its file
MAX_GROUPS = 10  # more groups of training triplets than this are no categories but roles or scenes


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of a benchmark has.

    Attributes:
        name: ``train``, ``train/<group>`` where there are few groups, or an evaluation set: ``val/fashioniq/original/dress``.
        counts: ``{"triplets": 5985}``, or ``{"queries": 2017, "gallery": 3817}``.
        files: the picture files that it needs.
    """

    name: str
    counts: Mapping[str, int]
    files: frozenset[Path]


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`check` found.

    Attributes:
        parts: of the benchmark; those that are missing altogether but have official counts, too.
        official: see :attr:`data_modules.base.CIRDataModule.official`.
        files: how many picture files there should be.
        missing: picture files that do not exist, with the reason.
        unreadable: picture files that are damaged or no pictures, with the reason; None if they were not opened.
    """

    parts: tuple[Part, ...]
    official: Mapping[str, int]
    files: int
    missing: Mapping[Path, str]
    unreadable: Mapping[Path, str] | None

    @property
    def counts(self) -> dict[str, int]:
        """What there is, with the keys of :attr:`official`."""
        return {f"{part.name} {what}": count for part in self.parts for what, count in part.counts.items()}

    @property
    def unofficial(self) -> tuple[str, ...]:
        """What has another count than the official one."""
        counts = self.counts
        return tuple(what for what, count in self.official.items() if counts.get(what, 0) != count)

    @property
    def complete(self) -> bool:
        """Whether training and scoring would be on all of the benchmark as it was published."""
        return not (self.missing or self.unreadable or self.unofficial)


def check(data: CIRDataModule, *, fast: bool = False) -> Report:
    """Read a benchmark's records, and look at every picture file that they need, and at every part of one.

    Args:
        data: not set up.
        fast: only see whether the files exist, and do not open them.

    Raises:
        UserError: the records cannot be read, or are not as they should be.
    """
    data.prepare_data()
    benchmark = data.read()
    validate(benchmark, data.max_caption_words)
    files: dict[Path, list[Box]] = {}
    for picture in benchmark.pictures:
        files.setdefault(picture.path, []).append(picture.box)
    missing = {path: "no such file" for path in files if not isfile(path)}
    unreadable = None if fast else _open_all([(path, boxes) for path, boxes in files.items() if path not in missing])
    parts = {part.name: part for part in _parts(benchmark)}
    for key in data.official:
        name = key.rpartition(" ")[0]
        parts.setdefault(name, Part(name, {}, frozenset()))
    return Report(tuple(parts.values()), data.official, len(files), missing, unreadable)


def _parts(benchmark: Benchmark) -> Iterator[Part]:
    path_of = {picture.name: picture.path for picture in benchmark.pictures}
    groups = {triplet.group for triplet in benchmark.triplets} - {""}
    for group in ("", *sorted(groups if len(groups) <= MAX_GROUPS else ())):
        chosen = [triplet for triplet in benchmark.triplets if group in {"", triplet.group}]
        names = {name for triplet in chosen for name in (triplet.reference, triplet.target)} | set(() if group else benchmark.unpaired)
        if names:
            yield Part(f"train/{group}".rstrip("/"), {"triplets": len(chosen)}, frozenset(path_of[name] for name in names))
    for split, sets in (("val", benchmark.val), ("test", benchmark.test), ("hidden", benchmark.hidden)):
        for one in sets:
            names = {*one.gallery, *(query.reference for query in one.queries)}
            counts = {"queries": len(one.queries), "gallery": len(one.gallery)}
            yield Part(f"{split}/{one.name}", counts, frozenset(path_of[name] for name in names))


def _open_all(files: Sequence[tuple[Path, Sequence[Box]]]) -> dict[Path, str]:
    """Those that cannot be read, or lack a part that is a picture of the benchmark, with the reason."""
    unreadable = {}
    with ThreadPoolExecutor() as pool, tqdm(total=len(files), desc="opening pictures", unit="picture") as bar:
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            for (path, _), reason in zip(chunk, pool.map(_open, chunk), strict=True):
                if reason:
                    unreadable[path] = reason
                bar.update()
    return unreadable


def _open(file: tuple[Path, Sequence[Box]]) -> str:
    """Why a picture cannot be read; empty if it can."""
    path, boxes = file
    try:
        image = load_image(path)
        for box in boxes:
            cut(image, box)
    except UserError as error:
        return " ".join(str(error).split())
    return ""


def write_lists(report: Report, root: Path) -> None:
    """Write ``missing.tsv`` and ``unreadable.tsv`` into the folder of the data set; a list that would be empty is removed.

    Each line has a path relative to the folder, a tab, and the reason; ``--data.missing=skip`` reads the second one.

    Raises:
        UserError: the folder cannot be written.
    """
    for name, found in ((MISSING, report.missing), (UNREADABLE, report.unreadable)):
        try:
            if found:
                text = "".join(
                    f"{path.relative_to(root) if path.is_relative_to(root) else path}\t{reason}\n" for path, reason in found.items()
                )
                replace_file(root / name, partial(Path.write_text, data=text, encoding="utf-8"))
            elif found is not None:
                (root / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {root / name} ({error.strerror}); make the folder writable") from error


def to_text(report: Report, root: Path) -> str:
    """A table of the parts, and sentences about what is wrong."""
    lines = [
        ("part", "triplets/queries", "official", "gallery", "official", "pictures", "missing", "unreadable"),
        *(_cells(part, report) for part in report.parts),
    ]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    table = ["  ".join([name.ljust(first), *map(str.rjust, cells, widths)]) for name, *cells in lines]
    return "\n".join([*table, "", *_sentences(report, root)])


def _cells(part: Part, report: Report) -> tuple[str, ...]:
    counts: list[int | None] = []
    for what in ("triplets" if part.name.startswith("train") else "queries", "gallery"):
        counts += [part.counts.get(what), report.official.get(f"{part.name} {what}")]
    opened = None if report.unreadable is None else len(part.files & report.unreadable.keys())
    counts += [len(part.files), len(part.files & report.missing.keys()), opened]
    return (part.name, *("-" if count is None else f"{count:,}" for count in counts))


def _sentences(report: Report, root: Path) -> Iterator[str]:
    of = f"of {report.files:,} picture files"
    if report.missing:
        yield f"{len(report.missing):,} {of} do not exist; they are listed in {root / MISSING}"
    if report.unreadable:
        yield f"{len(report.unreadable):,} {of} cannot be read; they are listed in {root / UNREADABLE}, with the reasons"
    if report.missing or report.unreadable:
        yield "cir fit and cir test stop at these; with --data.missing=skip they leave them out, and their figures are no longer comparable"
    if report.unofficial:
        yield f"other counts than the official ones: {', '.join(report.unofficial)}; get the annotation files again"
    if report.unreadable is None:
        yield "the files were not opened; without --fast, damaged ones are found, too"
    if report.complete:
        yield f"complete: {report.files:,} picture files{', and all counts are the official ones' if report.official else ''}"
