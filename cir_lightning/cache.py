"""Frozen patch features on disk: every picture goes through the vision tower once, ever.

One folder per tower (its ``key`` names model, revision, transform and dtype) holds shards: safetensors files with the features of
some pictures, and, as metadata, the SHA-256 of each picture's file. A changed picture has another hash and so another entry.

Shapes: P pictures, N patches, Dv patch feature width.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cir_lightning.storage import lock, replace_file
from data_modules.folders import cache_root
from data_modules.images import TRANSFORM, content_hash, load_image, to_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from cir_lightning.backbones.base import VisionTower

BATCH = 8  # pictures per pass of the tower: larger ones take new memory for every layer and are 4 times slower on a CPU
FEW = 64  # fewer pictures than this show no progress bar
SHARD = 4096  # pictures per file


class FeatureCache:
    """Patch features of picture files by content.

    Args:
        tower: computes what is not there yet.
        folder: holds one folder per tower; by default ``features`` in the cache root.
    """

    def __init__(self, tower: VisionTower, folder: Path | None = None) -> None:
        self.tower = tower
        self.folder = (folder or cache_root() / "features") / f"{tower.key}-{TRANSFORM}"

    def features(self, paths: Sequence[Path]) -> Tensor:
        """Patch features of the pictures, from the cache where they are there, computed and kept where they are not.

        Returns:
            (P, N, Dv) float16, on the CPU.

        Raises:
            UserError: a picture cannot be read, or the cache folder cannot be written.
        """
        hashes = [content_hash(path) for path in paths]
        where = dict(zip(hashes, paths, strict=True))
        with lock(self.folder / "shards"):
            known = self._index()
            missing = [h for h in where if h not in known]
            for start in range(0, len(missing), SHARD):
                part = missing[start : start + SHARD]
                self._compute(part, [where[h] for h in part])
            known = self._index() if missing else known
        out = torch.empty(len(paths), self.tower.patches, self.tower.width, dtype=torch.float16)
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

    def _compute(self, hashes: list[str], paths: list[Path]) -> None:
        features = torch.cat(list(self._encode(paths)))
        number = len(list(self.folder.glob("*.safetensors")))
        shard = self.folder / f"{number:05d}-{hashes[0][:12]}.safetensors"
        replace_file(shard, lambda part: save_file({"features": features}, part, {"hashes": json.dumps(hashes)}))

    def _encode(self, paths: list[Path]) -> Iterator[Tensor]:
        from tqdm import tqdm

        device = next(self.tower.parameters()).device
        with tqdm(total=len(paths), desc="patch features", unit="picture", disable=len(paths) < FEW) as bar:
            for start in range(0, len(paths), BATCH):
                chunk = paths[start : start + BATCH]
                pixels = torch.stack([to_tensor(load_image(path), self.tower.image_size) for path in chunk])
                yield self.tower(pixels.to(device)).cpu()
                bar.update(len(chunk))


def _hashes(shard: Path) -> list[str]:
    with safe_open(shard, framework="pt") as file:
        hashes: list[str] = json.loads(file.metadata()["hashes"])
    return hashes
