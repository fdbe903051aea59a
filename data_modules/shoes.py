"""Shoes: pictures of women's shoes with one relative caption per triplet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data_modules.annotations import PictureFolder, find_file, read_names, read_records
from data_modules.base import CIRDataModule
from data_modules.errors import UserError
from data_modules.records import Benchmark, EvaluationSet, Picture, Published, Query, Triplet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from data_modules.base import Missing
    from data_modules.images import Transform
    from data_modules.pixels import Augment

CAPTIONS, TRAIN, EVAL = "relative_captions_shoes.json", "train_im_names.txt", "eval_im_names.txt"

_PUBLISHED = tuple(
    Published(
        method,
        tuple(zip(("R@1", "R@10", "R@50"), figures, strict=True)),
        "as later papers quote it; that its protocol is this one is presumed",
    )
    for method, figures in (
        ("ENCODER", (26.97, 65.59, 86.48)),
        ("LIMN+", (29.64, 68.37, 88.07)),
        ("COMBINER", (32.37, 70.81, 88.81)),
    )
)


class Shoes(CIRDataModule):
    """Shoes (Guo et al., NeurIPS 2018; pictures of Berg et al., ECCV 2010), ``cir fit --config shoes.yaml``.

    The gallery is all pictures of the eval list, without the query's reference. There is no other split to choose a checkpoint on: the
    eval split is val, and ``cir test`` scores the same. One of its queries has its reference as target; it is kept and counted as
    unreachable.

    Layouts of ``root``, accepted as they are: ``relative_captions_shoes.json``, ``train_im_names.txt`` and ``eval_im_names.txt`` as
    published, beside the folders ``womens_pumps/0`` and ``womens_pumps/1`` ... of the Attribute Discovery Dataset, in ``attributedata``
    (VAL), in ``root`` itself (DQU-CIR) or in ``images``; or beside ``images`` with all pictures.

    Args:
        root: folder of the data set.
        batch_size: see :class:`CIRDataModule`.
        eval_batch_size: see :class:`CIRDataModule`.
        num_workers: see :class:`CIRDataModule`.
        same_group: see :class:`CIRDataModule`; a triplet's group is the kind of its target: ``womens_pumps``.
        seed: see :class:`CIRDataModule`.
        max_caption_words: see :class:`CIRDataModule`.
        transform: see :class:`CIRDataModule`.
        augment: see :class:`CIRDataModule`.
        missing: see :class:`CIRDataModule`.

    Raises:
        UserError: an argument is out of its range.

    Source: protocol of VAL (Chen et al., CVPR 2020).
    """

    def __init__(
        self,
        root: str = "data/shoes",
        *,
        batch_size: int = 128,
        eval_batch_size: int = 128,
        num_workers: int | None = None,
        same_group: float = 0.5,
        seed: int = 0,
        max_caption_words: int = 60,
        transform: Transform = "pad",
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
        self.root = Path(root).expanduser()

    @property
    def official(self) -> dict[str, int]:
        """The counts of the files as published; see :class:`CIRDataModule`."""
        return {"train triplets": 8990, "val/shoes queries": 1761, "val/shoes gallery": 4658}

    def read(self) -> Benchmark:
        """Read the records; a triplet belongs to the split that both its pictures are in."""
        lists = {split: read_names(find_file(self.root, (split,), "shoes"), "a Shoes list") for split in (TRAIN, EVAL)}
        split_of = {name: split for split, names in lists.items() for name in names}
        path = find_file(self.root, (CAPTIONS,), "shoes")
        fields = {"ReferenceImageName": str, "ImageName": str, "RelativeCaption": str}
        triplets, queries = [], []
        for number, record in enumerate(read_records(path, fields, "Shoes captions")):
            reference, target, caption = (record[field] for field in fields)
            splits = {split_of.get(reference), split_of.get(target)}
            if splits == {TRAIN}:
                triplets.append(Triplet(reference, caption, target, _kind(target)))
            elif splits == {EVAL}:
                queries.append(Query(f"shoes-{number}", reference, caption, (target,)))
            else:
                raise UserError(
                    f"{path}, record {number}: pictures {reference!r:.80} and {target!r:.80} are not both in {TRAIN} or both in {EVAL}; "
                    "get all three files of one version"
                )
        evaluation = EvaluationSet(
            "shoes",
            tuple(queries),
            tuple(lists[EVAL]),
            recall_at=(1, 10, 50),
            mean_of=("R@1", "R@10", "R@50"),
            protocol="gallery of the eval list, reference removed",
            published=_PUBLISHED,
        )
        paired = (name for triplet in triplets for name in (triplet.reference, triplet.target))
        return Benchmark(self._pictures([*paired, *lists[EVAL]]), tuple(triplets), val=(evaluation,), test=())

    def _pictures(self, names: Iterable[str]) -> tuple[Picture, ...]:
        folder = PictureFolder(self.root, ("attributedata", "images", "."))
        # The name stands for the pixels: to hash so many files would make every start slow.
        return tuple(
            Picture(name, folder.path(name, *(f"{_kind(name)}/{part}" for part in (0, 1)), ""), name) for name in dict.fromkeys(names)
        )


def _kind(name: str) -> str:
    """``img_womens_rain_boots_12.jpg`` -> ``womens_rain_boots``."""
    return name.removeprefix("img_").rpartition("_")[0]
