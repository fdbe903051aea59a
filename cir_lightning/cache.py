"""Frozen patch features on disk: every picture goes through the vision tower once, ever.

One folder per tower and transform (the tower's ``key`` names model, revision and dtype) holds shards: safetensors files with the features
of some pictures, and, as metadata, the SHA-256 of each picture's file and its box. A changed picture has another hash and another entry.

Shapes: P pictures, N patches, Dv patch feature width.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cir_lightning.storage import lock, replace_file
from data_modules.errors import UserError
from data_modules.folders import cache_root
from data_modules.images import TRANSFORM_VERSION, content_hash, load_image, to_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from cir_lightning.backbones.base import VisionTower
    from data_modules.images import Transform
    from data_modules.records import Picture

BATCH = 8  # pictures per pass of the tower: larger ones take new memory for every layer and are 4 times slower on a CPU
FEW = 64  # fewer pictures than this show no progress bar
SHARD = 4096  # pictures per file


class FeatureCache:
    """Patch features of pictures by content.

    Args:
        tower: computes what is not there yet.
        transform: how pictures become squares.
        folder: holds one folder per tower; by default ``features`` in the cache root.
    """

    def __init__(self, tower: VisionTower, transform: Transform = "letterbox", folder: Path | None = None) -> None:
        self.tower, self.transform = tower, transform
        self.folder = (folder or cache_root() / "features") / f"{tower.key}-{transform}-{TRANSFORM_VERSION}"

    def features(self, pictures: Sequence[Picture]) -> Tensor:
        """Patch features of the pictures, from the cache where they are there, computed and kept where they are not.

        Returns:
            (P, N, Dv) float16, on the CPU.

        Raises:
            UserError: a picture cannot be read, or the cache folder cannot be written.
        """
        hashes = [_entry(picture) for picture in pictures]
        where = dict(zip(hashes, pictures, strict=True))
        with lock(self.folder / "shards"):
            known = self._index()
            missing = [h for h in where if h not in known]
            for start in range(0, len(missing), SHARD):
                part = missing[start : start + SHARD]
                self._compute(part, [where[h] for h in part])
            known = self._index() if missing else known
        out = torch.empty(len(pictures), self.tower.patches, self.tower.width, dtype=torch.float16)
        for shard in {known[h] for h in where}:
            rows = {h: i for i, h in enumerate(_hashes(shard))}
            here = [(at, rows[h]) for at, h in enumerate(hashes) if known[h] == shard]
            with safe_open(shard, framework="pt") as file:
                tensor = file.get_tensor("features")
            out[[at for at, _ in here]] = tensor[[row for _, row in here]]
        return out

    def _index(self) -> dict[str, Path]:
        """Content hash -> shard. A shard that cannot be read is removed: its pictures are computed again."""
        known: dict[str, Path] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            try:
                known.update(dict.fromkeys(_hashes(shard), shard))
            except (SafetensorError, KeyError, TypeError, json.JSONDecodeError):  # TypeError: no metadata at all
                print(f"damaged feature cache {shard}: removed, its pictures are encoded again")
                shard.unlink()
        return known

    def _compute(self, hashes: list[str], pictures: list[Picture]) -> None:
        features = torch.cat(list(self._encode(pictures)))
        number = len(list(self.folder.glob("*.safetensors")))
        shard = self.folder / f"{number:05d}-{hashes[0][:12]}.safetensors"
        replace_file(shard, lambda part: save_file({"features": features}, part, {"hashes": json.dumps(hashes)}))

    def _encode(self, pictures: list[Picture]) -> Iterator[Tensor]:
        from tqdm import tqdm

        device = self.tower.device
        with tqdm(total=len(pictures), desc="patch features", unit="picture", disable=len(pictures) < FEW) as bar:
            for start in range(0, len(pictures), BATCH):
                chunk = pictures[start : start + BATCH]
                pixels = torch.stack([self._square(picture) for picture in chunk])
                yield self.tower(pixels.to(device)).cpu()
                bar.update(len(chunk))

    def _square(self, picture: Picture) -> Tensor:
        try:
            image = load_image(picture.path, picture.box)
        except UserError as error:
            raise UserError(
                f"{error}; cir data check lists all such pictures, and --data.missing=skip leaves the listed ones out"
            ) from error
        return to_tensor(image, self.tower.image_size, self.transform)


def _entry(picture: Picture) -> str:
    """What a picture is known by: its file's content, and the box if it is only a part of it."""
    box = "-".join(map(str, picture.box or ()))
    return f"{content_hash(picture.path)}-{box}" if box else content_hash(picture.path)


def _hashes(shard: Path) -> list[str]:
    with safe_open(shard, framework="pt") as file:
        hashes: list[str] = json.loads(file.metadata()["hashes"])
    return hashes
