"""The files of the feature cache: a shard is a safetensors file with the features of some pictures, by content, and a checksum of each.

Shapes: n pictures of the shard, N patches, Dv patch feature width.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from data_modules.errors import UserError
from data_modules.folders import replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

FORMAT = 2  # of the shards; one of another format is never read
USED = "used"  # a file whose date says when a run last wanted pictures of a folder; dates of reading are not kept everywhere
NUMBER_BYTES = 2  # of float16 and bfloat16


class DamagedShardError(Exception):
    """A file that is no whole shard; says what is wrong with it."""


class Shard(NamedTuple):
    """What a shard's header says.

    Attributes:
        path: the file.
        start: where its features begin, bytes.
        shape: (n, N, Dv).
        dtype: of the features, as safetensors writes it: ``F16`` or ``BF16``.
        entries: n names by content, in the order of the features.
        checks: n CRC-32 of the features' bytes.
    """

    path: Path
    start: int
    shape: tuple[int, int, int]
    dtype: str
    entries: list[str]
    checks: list[int]

    @property
    def rows(self) -> np.ndarray[Any, Any]:
        """The features (n, N * Dv) as int16 bit patterns, mapped into memory: what is not looked at is not read."""
        import numpy as np

        count, patches, width = self.shape
        return np.memmap(self.path, np.int16, "r", self.start, (count, patches * width))


def read_shard(path: Path) -> Shard:
    """Read a shard's header.

    Raises:
        DamagedShardError: it is cut short, or no shard of this format.
        UserError: a later version wrote it.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        about, features = header["__metadata__"], header["features"]
        written = int(about.get("format", 1))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedShardError("its header cannot be read") from error
    if written > FORMAT:
        raise UserError(
            f"feature cache {path} has format {written}, and this version writes {FORMAT}; use the version that wrote it, or another "
            "folder with CIR_CACHE=..."
        )
    if written < FORMAT:
        raise DamagedShardError(f"it has the older format {written}")
    try:
        entries, checks = json.loads(about["entries"]), json.loads(about["checks"])
        count, patches, width = features["shape"]
        shard = Shard(path, 8 + length, (count, patches, width), str(features["dtype"]), entries, checks)
        whole = shard.start + NUMBER_BYTES * count * patches * width
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedShardError("its header cannot be read") from error
    if size != whole or not len(entries) == len(checks) == count:
        raise DamagedShardError(f"it has {size:,} bytes, not {whole:,}")
    return shard


def write_shard(path: Path, rows: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: str, entries: Sequence[str]) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: where.
        rows: (n, N * Dv) int16 bit patterns.
        shape: (n, N, Dv).
        dtype: ``F16`` or ``BF16``.
        entries: n names by content.
    """
    about = {"format": str(FORMAT), "entries": json.dumps(entries), "checks": json.dumps([zlib.crc32(row) for row in rows])}
    features = {"dtype": dtype, "shape": shape, "data_offsets": [0, rows.nbytes]}
    header = json.dumps({"__metadata__": about, "features": features}).encode()
    header += b" " * (-len(header) % 8)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.write(rows.data)

    replace_file(path, write)
