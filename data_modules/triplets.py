"""The user's own data: one file of triplets and a folder of pictures."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning.pytorch.utilities import rank_zero_info

from data_modules.base import CIRDataModule, require
from data_modules.errors import UserError
from data_modules.picture_tree import PictureTree
from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Triplet
from data_modules.triplet_rows import read_rows, unused_columns

if TYPE_CHECKING:
    from data_modules.base import Missing
    from data_modules.images import Transform
    from data_modules.pixels import Augment
    from data_modules.triplet_rows import Row

AVERAGE = "avg"
_Queries = dict[str, list[Query]]  # by category
RECALL_AT, SUBSET_RECALL_AT = (1, 5, 10, 50), (1, 2, 3)


class Triplets(CIRDataModule):
    """Your own triplets, in a CSV file or one JSON object per line (``.jsonl``), and your own pictures.

    Columns or keys: ``reference``, ``caption`` and ``target``; or ``targets``, the best one first: a JSON list, in CSV separated by ``|``.
    Optional: ``split`` (``train``, ``val`` or ``test``; by default ``train``), ``category``, ``subset`` (pictures that look alike, the
    target among them; written as ``targets`` are, for the subset metric) and ``id``. The file is UTF-8; the header of a CSV file shows
    whether it has commas, semicolons or tabs.

    Pictures are named by their path relative to the file or to the folder of pictures. Queries of each category are one evaluation set,
    ``triplets/<category>``; those without are ``triplets/all``, and the mean of the sets is ``triplets/avg``. Training draws hard
    negatives from the same category, and makes a triplet of each target.

    Args:
        root: folder of the data set; no picture outside it and the folder of pictures is read. The file and that folder may be links.
        file: the file below it; by default its only ``*.csv`` or ``*.jsonl``.
        pictures: folder of pictures below root; by default ``images`` if there is one, else root itself without its folder ``runs``.
        gallery: what is searched: ``folder``, every picture in that folder, or ``split``, the pictures that the split's rows name.
        val_share: share of the train rows' first targets that are held out for validation, if no row is marked ``val``: their rows
            are validated, and they are the target of no training triplet. 0 to train on all rows, without validation.
        batch_size: see :class:`CIRDataModule`.
        eval_batch_size: see :class:`CIRDataModule`.
        num_workers: see :class:`CIRDataModule`.
        same_group: see :class:`CIRDataModule`.
        seed: see :class:`CIRDataModule`.
        max_caption_words: see :class:`CIRDataModule`.
        transform: see :class:`CIRDataModule`.
        augment: see :class:`CIRDataModule`.
        missing: see :class:`CIRDataModule`.

    Raises:
        UserError: an argument is out of its range.
    """

    def __init__(
        self,
        root: str = "data/triplets",
        file: str | None = None,
        *,
        pictures: str | None = None,
        gallery: Literal["folder", "split"] = "folder",
        val_share: float = 0.1,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        num_workers: int | None = None,
        same_group: float = 0.5,
        seed: int = 0,
        max_caption_words: int = 60,
        transform: Transform = "letterbox",
        augment: Augment = "none",
        missing: Missing = "stop",
    ) -> None:
        super().__init__(
            batch_size,
            eval_batch_size,
            num_workers=num_workers,
            same_group=same_group,
            seed=seed,
            max_caption_words=max_caption_words,
            transform=transform,
            augment=augment,
            missing=missing,
        )
        require(0 <= val_share < 1, "val_share", val_share, "a share from 0 to below 1")
        self.root = Path(os.path.abspath(Path(root).expanduser()))  # noqa: PTH100 - symbolic links stay as they are
        self.file, self.folder = file, pictures
        self.gallery, self.val_share = gallery, val_share

    def read(self) -> Benchmark:
        """Read the file, row by row, and list the folder of pictures."""
        file = self._find_file()
        tree = PictureTree(self.root, file.parent, self._find_pictures())
        held_out = self._hold_out(file, tree)
        triplets: list[Triplet] = []
        queries: dict[str, _Queries] = {"val": {}, "test": {}}
        for row in read_rows(file):
            reference, *targets = (tree.find(name, row.place) for name in (row.reference, *row.targets))
            split = "val" if row.split == "train" and targets[0] in held_out else row.split
            if split == "train":
                triplets += (Triplet(reference, row.caption, target, row.category) for target in targets if target not in held_out)
            else:
                members = dict.fromkeys([reference, *(tree.find(name, row.place) for name in row.subset)] if row.subset else [])
                _add(queries[split], Query(row.id, reference, row.caption, tuple(targets), tuple(members)), row)
        self._say(file, held_out, sum(map(len, queries["val"].values())))
        everything = tuple(tree.all()) if self.gallery == "folder" else ()
        val, test = (_evaluation_sets(queries[split], everything, split) for split in ("val", "test"))
        return Benchmark(tuple(Picture(name, path, name) for name, path in tree.paths.items()), tuple(triplets), val, test)

    def _find_file(self) -> Path:
        if not self.root.is_dir():
            raise UserError(f"triplets: there is no folder root={str(self.root)!r}; set --data.root to that of your file and your pictures")
        if self.file:
            return self._below(self.file, "file")
        files = sorted(path for suffix in ("csv", "jsonl") for path in self.root.glob(f"[!.]*.{suffix}"))
        if len(files) != 1:
            found = ", ".join(path.name for path in files) or "none"
            raise UserError(
                f"triplets: root={str(self.root)!r} must have one *.csv or *.jsonl, it has {found}; name yours with --data.file"
            )
        return files[0]

    def _find_pictures(self) -> Path:
        if self.folder:
            return self._below(self.folder, "pictures")
        return self.root / "images" if (self.root / "images").is_dir() else self.root

    def _below(self, name: str, key: str) -> Path:
        path = Path(os.path.normpath(self.root / name))
        exists, what = (path.is_file(), "file") if key == "file" else (path.is_dir(), "folder")
        if not exists or not path.is_relative_to(self.root):
            raise UserError(f"triplets: no {what} {name!r} under root={str(self.root)!r}; set --data.{key} to one that is there")
        return path

    def _hold_out(self, file: Path, tree: PictureTree) -> frozenset[str]:
        """First targets that are for validation alone, drawn by their names; none if there are val rows."""
        targets = set()
        for row in read_rows(file) if self.val_share else ():
            if row.split == "val":
                return frozenset()
            if row.split == "train":
                targets.add(tree.find(row.targets[0], row.place))
        if not targets:
            return frozenset()
        if len(targets) == 1:
            raise UserError(
                f"{file}: no row has split val, and as all train rows have one target, none can be held out for validation; mark rows "
                "with val, or train without validation with --data.val_share 0"
            )
        drawn = sorted(targets, key=lambda name: hashlib.sha256(name.encode()).digest())
        return frozenset(drawn[: min(len(drawn) - 1, max(1, round(self.val_share * len(drawn))))])

    def _say(self, file: Path, held_out: frozenset[str], rows: int) -> None:
        if unused := unused_columns(file):
            rank_zero_info(f"{file}: nothing reads the columns {', '.join(map(repr, unused))}")
        if held_out:
            rank_zero_info(
                f"{file} has no row with split val: the {rows:,} train rows of {len(held_out):,} targets are held out for validation "
                f"(data.val_share {self.val_share})"
            )


def _add(queries: _Queries, query: Query, row: Row) -> None:
    """File a query under its category."""
    if row.category == AVERAGE:
        raise UserError(f"{row.place}: category {AVERAGE!r} is the name of the categories' mean; choose another")
    others = queries.setdefault(row.category or "all", [])
    if others and bool(others[0].members) is not bool(query.members):
        has, have = ("a subset", "none") if query.members else ("no subset", "one")
        raise UserError(
            f"{row.place} has {has}, but query {others[0].id!r} of the same split and category has {have}; all need one, or none"
        )
    others.append(query)


def _evaluation_sets(queries: _Queries, everything: tuple[str, ...], split: str) -> tuple[EvaluationSet, ...]:
    """A set for each category, all with one gallery and with those K that are below the number of pictures to choose from."""
    named = (name for asked in queries.values() for query in asked for name in (query.reference, *query.targets, *query.members))
    gallery = tuple(dict.fromkeys((*everything, *named)))
    if queries and len(gallery) == 1:
        raise UserError(f"triplets: the gallery of {split} is the picture {gallery[0]!r} alone; searching needs more")
    searched = "every picture of the folder" if everything else "the pictures that the split's rows name"
    return tuple(
        EvaluationSet(
            f"triplets/{category}",
            tuple(asked),
            gallery,
            recall_at=tuple(k for k in RECALL_AT if k < len(gallery)),
            subset_recall_at=tuple(k for k in SUBSET_RECALL_AT if k < min(len(query.members) for query in asked)),
            average=f"triplets/{AVERAGE}",
            protocol=f"gallery: {searched}; reference removed",
        )
        for category, asked in sorted(queries.items())
    )
