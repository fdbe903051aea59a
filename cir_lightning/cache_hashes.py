"""What picture files contain, without reading them again at every start: hashes are remembered with the files' sizes, times and numbers.

A file is read again as soon as one of these differs. Two changes within one tick of a file system's clock leave the same times, so that
the hash of a file that was changed just before it was read is not remembered (as git does with "racy" entries of its index).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from data_modules.folders import replace_file
from data_modules.images import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SETTLED = 2_000_000_000  # nanoseconds
THREADS = 8

State = list[int]  # size, times of the last change of content and of anything, number in the file system


def content_hashes(paths: Sequence[Path], folder: Path) -> list[str]:
    """SHA-256 of the files' bytes, 64 hex digits each.

    Args:
        paths: the files.
        folder: where hashes are remembered, in a file for each folder of pictures; if it cannot be written, they are not.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_folder[path.parent].append(path)
    found: dict[Path, str] = {}
    for parent, members in by_folder.items():
        found |= _of_one_folder(parent.resolve(), members, folder)
    return [found[path] for path in paths]


def _of_one_folder(parent: Path, paths: list[Path], folder: Path) -> dict[Path, str]:
    memory = folder / f"{hashlib.sha256(os.fsencode(parent)).hexdigest()[:16]}.json"
    known, states = _remembered(memory), {path: _state(path) for path in paths}
    found = {path: known[path.name][1] for path, state in states.items() if state and known.get(path.name, (None,))[0] == state}
    if new := [path for path in paths if path not in found]:
        begun = time.time_ns()
        with ThreadPoolExecutor(THREADS) as pool:
            found |= dict(zip(new, pool.map(content_hash, new), strict=True))
        settled = [path for path in new if (state := states[path]) and max(state[1:3]) < begun - SETTLED]
        if settled:
            files = known | {path.name: (states[path], found[path]) for path in settled}
            text = json.dumps({"folder": str(parent), "files": files, "check": _check(str(parent), files)})
            with contextlib.suppress(OSError):
                replace_file(memory, lambda part: part.write_text(text, encoding="utf-8"))
    return found


def _state(path: Path) -> State | None:
    try:
        about = path.stat()
    except OSError:
        return None  # reading it says what is wrong
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def remembered_folder(memory: Path) -> str:
    """The folder of pictures whose hashes a file remembers; empty if the file is damaged."""
    return _read(memory)[0]


def _remembered(memory: Path) -> dict[str, tuple[State, str]]:
    return _read(memory)[1]


def _read(memory: Path) -> tuple[str, dict[str, tuple[State, str]]]:
    """A folder and what is remembered of its files; nothing of a file that is damaged, as a picture with a wrong hash would be lost."""
    try:
        content = json.loads(memory.read_bytes())
        folder, files = content["folder"], content["files"]
        if content["check"] != _check(folder, files):
            return "", {}
        return folder, {name: (state, found) for name, (state, found) in files.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return "", {}


def _check(folder: str, files: Mapping[str, tuple[State | None, str]]) -> int:
    return zlib.crc32(json.dumps([folder, files]).encode())
