"""Frozen patch features on disk: every picture goes through the vision tower once, ever.

One folder per tower and transform (the tower's ``key`` names model, revision and dtype) holds shards (:mod:`cir_lightning.cache_shards`).
A picture is known by the SHA-256 of its file and its box, so that a changed picture has another entry. Several processes may fill a folder
at once and share the work (:mod:`cir_lightning.cache_claims`); a folder that has everything is only read.

Shapes: P pictures, N patches, Dv patch feature width.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from cir_lightning.cache_claims import claim, live_claims
from cir_lightning.cache_hashes import content_hashes
from cir_lightning.cache_shards import NUMBER_BYTES, USED, DamagedShardError, Shard, read_shard, write_shard
from cir_lightning.distributed import rank, world_size
from cir_lightning.storage import lock, writing
from data_modules.errors import UserError
from data_modules.folders import cache_root
from data_modules.images import TRANSFORM_VERSION, content_hash, load_image, to_tensor
from data_modules.pixels import processors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from cir_lightning.backbones.base import VisionTower
    from cir_lightning.cache_claims import Claim
    from data_modules.images import Transform
    from data_modules.records import Picture

BATCH, GPU_BATCH = 8, 64  # pictures per pass of the tower: larger ones take new memory for every layer and are 4 times slower on a CPU
FEW = 64  # fewer pictures than this are not worth a word
POLL = 0.2  # seconds between two looks at what other processes are making
SHARD, SHARD_BYTES = 1024, 256 * 2**20  # what a process claims at a time, and loses when it is killed
DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16"}

Place = tuple[Shard, int]


class FeatureCache:
    """Patch features of pictures by content.

    Args:
        tower: computes what is not there yet.
        transform: how pictures become squares.
        folder: holds one folder per tower; by default ``features`` in the cache root.
    """

    def __init__(self, tower: VisionTower, transform: Transform = "letterbox", folder: Path | None = None) -> None:
        self.tower, self.transform = tower, transform
        root = folder or cache_root() / "features"
        self.folder, self.hashes = root / f"{tower.key}-{transform}-{TRANSFORM_VERSION}", root / "hashes"
        self._shards: dict[Path, Shard] = {}

    def open(self, pictures: Sequence[Picture]) -> Features:
        """Patch features of the pictures, of which those that are not in the cache yet are computed and kept.

        Raises:
            UserError: a picture cannot be read; the cache folder cannot be written, or its disk is too small.
        """
        entries = _entries(pictures, self.hashes)
        known = self._complete(dict(zip(entries, pictures, strict=True)))
        with contextlib.suppress(OSError):  # it may be somebody else's
            (self.folder / USED).touch()
        return Features(self, pictures, [known[entry] for entry in entries])

    def again(self, picture: Picture, bad: Shard) -> Place:
        """Where the features of a picture are, if not in a shard that has others under its name."""
        (entry,) = _entries([picture], self.hashes)
        with self._locked():
            place = self._index().get(entry)
            if place is None or place[0].path == bad.path:
                mine = claim(self.folder, self._next_number(), [entry])
                try:
                    self._make(mine, {entry: picture}, self._tell([entry]))
                finally:
                    mine.give_back()
                place = self._index()[entry]
        return place

    # ---- what there is ---------------------------------------------------------------------------------------------------------

    def _index(self, *, clean: bool = True) -> dict[str, Place]:
        """Where every entry is; of an entry that was made again, the last one.

        Args:
            clean: remove what is no shard, under the folder's lock; else it is passed over.
        """
        known: dict[str, Place] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._shards:
                try:
                    self._shards[path] = self._read(path)
                except FileNotFoundError:  # removed by another process
                    continue
                except DamagedShardError as error:
                    if clean:
                        tqdm.write(f"damaged feature cache {path}: {error}; removed, its pictures are encoded again")
                        with writing(self.folder):
                            path.unlink(missing_ok=True)
                    continue
            shard = self._shards[path]
            known.update((entry, (shard, row)) for row, entry in enumerate(shard.entries))
        return known

    def _read(self, path: Path) -> Shard:
        shard, wanted = read_shard(path), (self.tower.patches, self.tower.width, DTYPES[self.tower.dtype])
        if (found := (*shard.shape[1:], shard.dtype)) != wanted:
            raise DamagedShardError(f"its features are {found}, not {wanted}")
        return shard

    # ---- making what is missing ------------------------------------------------------------------------------------------------

    def _complete(self, where: dict[str, Picture]) -> dict[str, Place]:
        known, bar = self._index(clean=False), None
        while missing := [entry for entry in where if entry not in known]:
            with self._locked():
                known, busy = self._index(), live_claims(self.folder)
                free = [entry for entry in missing if entry not in known and entry not in busy]
                bar = bar or self._tell(missing)
                mine = claim(self.folder, self._next_number(), free[: self._portion(len(free))]) if free else None
            if mine is not None:
                try:
                    self._make(mine, where, bar)
                finally:
                    with self._locked():
                        mine.give_back()
            elif busy.keys() & missing:
                time.sleep(POLL)
            known = self._index(clean=False)
            bar.n = (bar.total or 0) - sum(entry not in known for entry in where)  # others have made some, too
            bar.refresh()
        if bar:
            bar.close()
        return known

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with lock(self.folder):  # which lies beside it: a folder may be removed, and its lock may not
            self.folder.mkdir(exist_ok=True)
            yield

    def _next_number(self) -> int:
        names = [path.stem.removeprefix("claim-") for pattern in ("*.safetensors", "claim-*.json") for path in self.folder.glob(pattern)]
        return 1 + max((int(name.split("-")[0]) for name in names), default=-1)

    def _portion(self, free: int) -> int:
        """How many pictures to claim: few enough that all processes have something to do until the end."""
        return max(1, min(SHARD, SHARD_BYTES // self._bytes(1), max(FEW, free // (4 * world_size()))))

    def _bytes(self, pictures: int) -> int:
        return pictures * self.tower.patches * self.tower.width * NUMBER_BYTES

    def _tell(self, missing: list[str]) -> tqdm[Any]:
        """Say what is going to be made, or that the disk is too small for it; a bar of how much is made."""
        size, free = self._bytes(len(missing)), shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"the patch features of {len(missing):,} pictures take {size / 1e9:.2f} GB, and {self.folder} has {free / 1e9:.2f} GB "
                "free; choose another folder with CIR_CACHE=..., or keep fewer of them with model.encoder.patch_pooling"
            )
        quiet = len(missing) < FEW or rank() != 0
        if not quiet:
            print(f"patch features of {len(missing):,} new pictures: {size / 1e6:,.0f} MB in {self.folder}")
        return tqdm(total=len(missing), desc="patch features", unit="picture", disable=quiet)

    def _make(self, mine: Claim, where: dict[str, Picture], bar: tqdm[Any]) -> None:
        shape = len(mine.entries), self.tower.patches, self.tower.width
        features = torch.empty(shape, dtype=self.tower.dtype)
        at = 0
        for part in self._encode([(where[entry], entry) for entry in mine.entries]):
            features[at : at + len(part)] = part
            at += len(part)
            bar.update(len(part))
        path = self.folder / f"{mine.number:05d}-{mine.entries[0][:12]}.safetensors"
        rows = features.flatten(1).view(torch.int16).numpy()
        with writing(self.folder):
            write_shard(path, rows, shape, DTYPES[self.tower.dtype], mine.entries)

    @torch.no_grad()
    def _encode(self, pictures: list[tuple[Picture, str]]) -> Iterator[Tensor]:
        device = self.tower.device
        size = BATCH if device.type == "cpu" else GPU_BATCH
        batches = [pictures[start : start + size] for start in range(0, len(pictures), size)]
        with torch.autocast(device.type, enabled=False), ThreadPoolExecutor(min(size, processors())) as pool:
            ahead = pool.map(self._square, batches[0])
            for following in [*batches[1:], []]:
                pixels, ahead = torch.stack(list(ahead)), pool.map(self._square, following)
                yield self.tower(pixels.to(device)).cpu()

    def _square(self, known: tuple[Picture, str]) -> Tensor:
        picture, entry = known
        try:
            image = load_image(picture.path, picture.box)
        except UserError as error:
            raise UserError(
                f"{error}; cir data check lists all such pictures, and --data.missing=skip leaves the listed ones out"
            ) from error
        if not entry.startswith(content_hash(picture.path)):  # else these would be the features of what it was before
            raise UserError(f"picture {picture.path} was changed while its features were made; start again, when nothing writes pictures")
        return to_tensor(image, self.tower.image_size, self.transform)


class Features:
    """Patch features (P, N, Dv) on disk, of which only what is asked for is read, and checked when it is read for the first time.

    Args:
        cache: makes what turns out to be damaged again.
        pictures: P.
        places: P, where each one's features are.
    """

    def __init__(self, cache: FeatureCache, pictures: Sequence[Picture], places: list[Place]) -> None:
        self.cache, self.pictures, self.places = cache, pictures, places
        self.dtype = cache.tower.dtype
        self._rows: dict[Path, np.ndarray[Any, Any]] = {}
        self._checked = np.zeros(len(places), dtype=bool)

    def __len__(self) -> int:
        """P."""
        return len(self.places)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Features (n, N, Dv) of pictures (n,) long; in pinned memory where there is a GPU.

        Raises:
            UserError: features are damaged, and cannot be made again.
        """
        chosen = range(*which.indices(len(self))) if isinstance(which, slice) else which.tolist()
        tower = self.cache.tower
        out = torch.empty(len(chosen), tower.patches * tower.width, dtype=torch.int16, pin_memory=tower.device.type == "cuda")
        rows = out.numpy()
        for at, number in enumerate(chosen):
            rows[at] = self._row(number)
            if not self._checked[number]:
                self._check(number, rows[at])
        return out.view(self.dtype).view(len(chosen), tower.patches, tower.width)

    def _row(self, number: int) -> np.ndarray[Any, Any]:
        shard, row = self.places[number]
        if shard.path not in self._rows:
            try:
                self._rows[shard.path] = shard.rows
            except FileNotFoundError as error:
                raise UserError(
                    f"feature cache {shard.path} was removed while it was in use, as by cir cache prune; start again, a training with "
                    "--ckpt_path last, and it is made anew"
                ) from error
        found: np.ndarray[Any, Any] = self._rows[shard.path][row]
        return found

    def _check(self, number: int, row: np.ndarray[Any, Any]) -> None:
        while zlib.crc32(row.data) != (place := self.places[number])[0].checks[place[1]]:
            picture = self.pictures[number]
            tqdm.write(f"damaged feature cache {place[0].path}: the features of {picture.path} are encoded again")
            self.places[number] = self.cache.again(picture, place[0])
            row[:] = self._row(number)
        self._checked[number] = True


def _entries(pictures: Iterable[Picture], hashes: Path) -> list[str]:
    """What pictures are known by: their files' content, and the box of one that is only a part of its file."""
    listed = list(pictures)
    found = content_hashes([picture.path for picture in listed], hashes)
    boxes = ["".join(f"-{edge}" for edge in picture.box or ()) for picture in listed]
    return [f"{content}{box}" for content, box in zip(found, boxes, strict=True)]
