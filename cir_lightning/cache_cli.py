"""``cir cache``: fill the feature cache beforehand, see what is in it, and take out what is not wanted any more."""

from __future__ import annotations

import argparse
import shutil
import time
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from cir_lightning.cache_claims import live_claims
from cir_lightning.cache_shards import USED, DamagedShardError, Shard, read_shard
from cir_lightning.data_cli import Refusing
from cir_lightning.storage import lock, writing
from data_modules.errors import UserError
from data_modules.folders import cache_root

HELP = """\
usage: cir cache build --config RECIPE [--config OVERLAY] [--device DEVICE] [options of cir fit]
       cir cache info
       cir cache prune [--only PATTERN] [--unused_for DAYS] [--all] [--dry_run]

  build  sends every picture of a benchmark through the recipe's vision tower, unless that was done before. Several processes, also on
         several machines with one folder, share the work. cir fit does so, too, when it starts.
           --device       cpu, cuda, cuda:1 ...; by default a GPU if there is one
  info   what there is: pictures, size, when it was last used.
  prune  removes what killed processes left behind, damaged files, and those of older versions; besides, on request,
           --unused_for   what no run wanted for so many days
           --only         of the folders that info lists, those whose name fits the pattern, such as '*siglip*'; nothing else is looked at
           --all          everything
           --dry_run      only says what would be removed

The cache is in $CIR_CACHE/features, by default ~/.cache/cir-lightning/features. It can always be made again."""

DAY = 86_400  # seconds


class _Parser(Refusing, argparse.ArgumentParser):
    pass


class Contents(NamedTuple):
    """What one folder, of one tower and transform, holds.

    Attributes:
        folder: where.
        shards: whole ones.
        bad: files that are none, and why.
        size: bytes of everything.
        used: when a run last wanted pictures of it, seconds since 1970.
    """

    folder: Path
    shards: list[Shard]
    bad: dict[Path, str]
    size: int
    used: float

    @property
    def pictures(self) -> int:
        """Different pictures."""
        return len({entry for shard in self.shards for entry in shard.entries})


def run(argv: list[str]) -> int:
    """Run one command.

    Args:
        argv: its name and options.

    Returns:
        The exit code.

    Raises:
        UserError: there is no such command, or the command's own reasons.
    """
    if not argv or set(argv) & {"-h", "--help"}:
        print(HELP)
        return 0
    name, *options = argv
    commands = {"build": _build, "info": _info, "prune": _prune}
    if name not in commands:
        raise UserError(f"unknown command 'cache {name}'; commands are {', '.join(f'cache {command}' for command in commands)}")
    commands[name](options)
    return 0


def look(folder: Path) -> Contents:
    """See what a folder holds."""
    shards, bad, used = [], {}, folder / USED
    for path in sorted(folder.glob("*.safetensors")):
        try:
            shards.append(read_shard(path))
        except DamagedShardError as error:
            bad[path] = str(error)
        except FileNotFoundError:  # removed meanwhile
            continue
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return Contents(folder, shards, bad, size, (used if used.exists() else folder).stat().st_mtime)


def _folders() -> list[Path]:
    root = cache_root() / "features"
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name != "hashes") if root.is_dir() else []


def _info(options: list[str]) -> None:
    _Parser(prog="cir cache info", add_help=False).parse_args(options)
    found = [look(folder) for folder in _folders()]
    print(f"{cache_root() / 'features'}: {sum(one.size for one in found) / 1e6:,.1f} MB of patch features")
    for one in found:
        shapes = {f"{patches} x {width} {dtype}" for _, _, (_, patches, width), dtype, *_ in one.shards}
        day = datetime.fromtimestamp(one.used, UTC).date()
        bad = f", {len(one.bad)} files that prune removes" if one.bad else ""
        print(f"  {one.folder.name}\n    {one.pictures:,} pictures, {one.size / 1e6:,.1f} MB, {', '.join(shapes)}, last used {day}{bad}")


def _prune(options: list[str]) -> None:
    parser = _Parser(prog="cir cache prune", add_help=False, allow_abbrev=False)
    parser.add_argument("--only", default="*")
    parser.add_argument("--unused_for", type=float)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--dry_run", action="store_true")
    asked = parser.parse_args(options)
    if asked.unused_for is not None and asked.unused_for < 0:
        raise UserError(f"--unused_for={asked.unused_for} is not possible; give a number of days, 0 or more")
    folders = [folder for folder in _folders() if fnmatchcase(folder.name, asked.only)]
    if asked.only != "*" and not folders:
        raise UserError(f"--only {asked.only!r} fits no folder of {cache_root() / 'features'}; cir cache info lists them")
    oldest = None if asked.unused_for is None else time.time() - DAY * asked.unused_for
    freed = sum(_prune_folder(folder, oldest, everything=asked.all, really=not asked.dry_run) for folder in folders)
    if asked.only == "*":
        freed += _prune_hashes(really=not asked.dry_run)
    print(f"{'would free' if asked.dry_run else 'freed'} {freed / 1e6:,.1f} MB")


def _prune_folder(folder: Path, oldest: float | None, *, everything: bool, really: bool) -> int:
    """Bytes that were, or would be, freed."""
    with lock(folder):
        one = look(folder)
        if live_claims(folder):
            print(f"{folder.name}: left alone, as a process is filling it")
            return 0
        if everything or (oldest is not None and one.used < oldest):
            print(f"{folder.name}: all of {one.pictures:,} pictures")
            if really:
                with writing(folder):
                    shutil.rmtree(folder)
            return one.size
        reasons = one.bad | dict.fromkeys(folder.glob(".*"), "half written by a process that was killed")
        freed = sum(path.stat().st_size for path in reasons)
        for path, reason in reasons.items():
            print(f"{folder.name}/{path.name}: {reason}")
            if really:
                with writing(folder):
                    path.unlink()
    return freed


def _prune_hashes(*, really: bool) -> int:
    """Forget the pictures of folders that do not exist any more."""
    from cir_lightning.cache_hashes import remembered_folder

    freed = 0
    for path in (cache_root() / "features" / "hashes").glob("*.json"):
        folder = remembered_folder(path)
        if not (folder and Path(folder).is_dir()):
            print(f"hashes/{path.name}: {'of a folder of pictures that is not there any more' if folder else 'damaged'}")
            freed += path.stat().st_size
            if really:
                with writing(path.parent):
                    path.unlink()
    return freed


def _build(options: list[str]) -> None:
    parser = _Parser(prog="cir cache build", add_help=False, allow_abbrev=False)
    parser.add_argument("--device")
    asked, rest = parser.parse_known_args(options)
    from cir_lightning.cache_build import build

    build(rest, asked.device)
