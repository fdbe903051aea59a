"""EmojiCIR, the embedded benchmark: pictures, captions and queries made on the spot, without a download."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from data_modules.base import CIRDataModule, require
from data_modules.emoji_captions import title
from data_modules.emoji_names import complete, parse
from data_modules.emoji_queries import Rules, Variant, Writer, split_pictures, write_evaluation_sets, write_triplets
from data_modules.emoji_render import INDEX, catalogue, code_points, ensure_pictures, pictures_folder, read_contents
from data_modules.records import Benchmark, Picture

MIN_IMAGE_SIZE = 32  # pixels


class EmojiCIR(CIRDataModule):
    """Emoji pictures with captions from the difference of their names: "make it a woman, with dark skin".

    Val and test have two evaluation sets each over one gallery: ``seen`` (new pictures of roles that training knows) and ``held_out``
    (roles that training never sees). Pictures are OpenMoji's, CC BY-SA 4.0.

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
        num_workers: int = 0,
        same_group: float = 0.5,
        seed: int = 0,
        max_caption_words: int = 60,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers=num_workers, same_group=same_group, seed=seed, max_caption_words=max_caption_words
        )
        require(image_size >= MIN_IMAGE_SIZE, "image_size", image_size, f"{MIN_IMAGE_SIZE} pixels or more")
        require(held_out_roles >= 0, "held_out_roles", held_out_roles, "0 or more")
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
        folder = ensure_pictures(self.root, self.image_size)
        variants, files = _variants(folder)
        splits = split_pictures(variants, self.rules)
        writer = Writer(splits.gallery, self.rules.role_edit_share)
        val, test = write_evaluation_sets(writer, splits, self.rules)
        kept_out = {v.content for part in (splits.val, splits.test, splits.held_out_val, splits.held_out_test) for v in part}
        return Benchmark(
            pictures=tuple(Picture(v.name, files[v.name], v.content, title(v.name, v.description)) for v in variants),
            triplets=write_triplets(writer, splits, self.rules),
            val=val,
            test=test,
            unpaired=tuple(v.name for v in splits.train + splits.outside if v.content not in kept_out),
        )


def _variants(folder: Path) -> tuple[list[Variant], dict[str, Path]]:
    """All pictures in the folder, in the order of their characters, and picture name -> file."""
    contents = read_contents(folder)
    drawn = {code_points(characters): name for characters, name in catalogue().items() if code_points(characters) in contents}
    descriptions = complete(parse(name) for name in drawn.values())
    variants = [Variant(name, described, contents[points]) for (points, name), described in zip(drawn.items(), descriptions, strict=True)]
    return variants, {name: folder / f"{points}.png" for points, name in drawn.items()}


def cache_root() -> Path:
    """The folder of everything that can be made again: ``$CIR_CACHE``, by default ``~/.cache/cir-lightning``."""
    return Path(os.environ.get("CIR_CACHE") or Path.home() / ".cache" / "cir-lightning").expanduser()
