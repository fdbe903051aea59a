"""EmojiCIR, the embedded benchmark: pictures, captions and queries made on the spot, without a download."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from data_modules.base import CIRDataModule, require
from data_modules.emoji_names import complete, parse
from data_modules.emoji_queries import Rules, difference, write_benchmark
from data_modules.emoji_render import INDEX, ensure_pictures, pictures_folder
from data_modules.folders import cache_root

if TYPE_CHECKING:
    from data_modules.base import Missing
    from data_modules.emoji_names import Description
    from data_modules.images import Transform
    from data_modules.pixels import Augment
    from data_modules.records import Benchmark, Query

MIN_IMAGE_SIZE = 32  # pixels


class EmojiCIR(CIRDataModule):
    """Emoji pictures with captions from the difference of their names: "make it a woman, with dark skin".

    Val and test have two evaluation sets each over one gallery: ``emoji/seen`` (new pictures of roles that training knows) and
    ``emoji/held_out`` (roles that training never sees). Test has a third one over all pictures, ``emoji/abstract``, whose captions
    name a relation (:mod:`data_modules.emoji_abstract`). Pictures are OpenMoji's, CC BY-SA 4.0.

    Args:
        root: folder for the pictures; by default ``emoji`` in ``$CIR_CACHE``, else in ``~/.cache/cir-lightning``.
        image_size: side of the pictures, pixels.
        held_out_roles: number of roles held out of training, 3 in 7 of them for val.
        min_variants: pictures that a role must have to be in the gallery.
        triplets_per_target: training triplets written for each training picture, at most.
        queries_per_target: queries for each picture that is held out of a seen role, at most.
        queries_per_held_out_target: queries for each picture of a held-out role, at most.
        role_edit_share: share of these whose reference shows another role, 0 to 1.
        split_seed: draws the splits, triplets and queries: figures are comparable only for the same one.
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
        root: str | None = None,
        image_size: int = 160,
        *,
        held_out_roles: int = 35,
        min_variants: int = 6,
        triplets_per_target: int = 24,
        queries_per_target: int = 4,
        queries_per_held_out_target: int = 3,
        role_edit_share: float = 0.25,
        split_seed: int = 0,
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
        require(image_size >= MIN_IMAGE_SIZE, "image_size", image_size, f"{MIN_IMAGE_SIZE} pixels or more")
        require(min_variants >= 1, "min_variants", min_variants, "1 or more")
        require(triplets_per_target >= 1, "triplets_per_target", triplets_per_target, "1 or more")
        counts = {
            "held_out_roles": held_out_roles,
            "queries_per_target": queries_per_target,
            "queries_per_held_out_target": queries_per_held_out_target,
        }
        for key, count in counts.items():
            require(count >= 0, key, count, "0 or more")
        require(0 <= role_edit_share <= 1, "role_edit_share", role_edit_share, "a share from 0 to 1")
        self.root = Path(root).expanduser() if root else cache_root() / "emoji"
        self.image_size = image_size
        self.rules = Rules(
            held_out_roles=held_out_roles,
            min_variants=min_variants,
            triplets_per_target=triplets_per_target,
            queries_per_target=queries_per_target,
            queries_per_held_out_target=queries_per_held_out_target,
            role_edit_share=role_edit_share,
            split_seed=split_seed,
        )

    def prepare_data(self) -> None:
        """Draw the pictures, once per folder.

        Raises:
            UserError: the folder cannot be written, or a package is missing.
        """
        folder = pictures_folder(self.root, self.image_size)
        if not (folder / INDEX).is_file():
            rank_zero_info(f"drawing the pictures of EmojiCIR into {folder} (once, less than a minute)")
        ensure_pictures(self.root, self.image_size)

    def read(self) -> Benchmark:
        """Write the records from the names of the pictures that the folder has."""
        return write_benchmark(ensure_pictures(self.root, self.image_size), self.rules)

    def describe(self, query: Query) -> dict[str, tuple[str, ...]]:
        """See :class:`CIRDataModule`: the edits that the caption was written from, the target's role; of abstract ones, the relation."""
        if not query.id.isdigit():
            return {"relation": (query.id.rpartition("-")[0].replace("_", " "),)}
        reference, target = self._descriptions[query.reference], self._descriptions[query.targets[0]]
        edits = difference(reference, target)
        return {"edits": (str(len(edits)),), "kind of edit": tuple(edits), "role": (target.role,), "reference's role": (reference.role,)}

    @cached_property
    def _descriptions(self) -> dict[str, Description]:
        names = [picture.name for picture in self.pictures]
        return dict(zip(names, complete(parse(name) for name in names), strict=True))
