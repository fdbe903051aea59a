"""Where caches lie, and how files and folders come into being: whole or not at all, also with several processes."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from data_modules.errors import UserError
from data_modules.folders import replace_file as replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Write into a folder of the cache.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or folder}: {error.strerror}; free or choose another folder with CIR_CACHE=..."
        ) from error


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``<path>.lock``, so that one process at a time makes what belongs at ``path``.

    Raises:
        UserError: the folder cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            yield


def create_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Return ``path``, made by ``fill`` on an empty temporary folder beside it if it does not exist yet.

    Raises:
        UserError: the folder cannot be written.
    """
    if path.is_dir():
        return path
    with lock(path):
        if not path.is_dir():
            part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            try:
                fill(part)
                part.rename(path)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return path
