"""Fashion-IQ: pictures of dresses, shirts and tops, two captions per triplet, scored under all three protocols that papers use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from data_modules.annotations import PictureFolder, find_file, read_names, read_records
from data_modules.base import CIRDataModule, require
from data_modules.errors import UserError
from data_modules.records import Benchmark, EvaluationSet, Picture, Published, Query, Triplet
from data_modules.validation import is_text

if TYPE_CHECKING:
    from data_modules.base import Missing
    from data_modules.images import Transform
    from data_modules.pixels import Augment

Category = Literal["dress", "shirt", "toptee"]
CATEGORIES: tuple[Category, ...] = ("dress", "shirt", "toptee")
_SPLITS = ("train", "val", "test")


class _Protocol(NamedTuple):
    name: str
    words: str
    whole_gallery: bool
    remove_reference: bool


_PROTOCOLS = (
    _Protocol("original", "original: gallery of the split file, reference kept", whole_gallery=True, remove_reference=False),
    _Protocol("original-noref", "original-noref: gallery of the split file, reference removed", whole_gallery=True, remove_reference=True),
    _Protocol("val", "val: gallery of the queries' references and targets, reference removed", whole_gallery=False, remove_reference=True),
)

_OFFICIAL: dict[Category, tuple[int, int, int, int, int, int]] = {  # train triplets; val queries and its two galleries; test likewise
    "dress": (5985, 2017, 3817, 2628, 2024, 3818),
    "shirt": (5988, 2038, 6346, 3089, 2038, 6346),
    "toptee": (6027, 1961, 5373, 2902, 2056, 5374),
}

_PUBLISHED: tuple[tuple[str, str, dict[Category | Literal["avg"], tuple[float, float]]], ...] = (  # R@10 and R@50, protocol "original"
    (
        "SPRC",
        "re-printed in arXiv 2602.01639",
        {"dress": (49.18, 72.43), "shirt": (55.64, 73.89), "toptee": (59.35, 78.58), "avg": (54.72, 74.97)},
    ),
    (
        "CIR-LVLM",
        "re-printed in arXiv 2602.01639; that its protocol is this one is presumed",
        {"dress": (50.42, 73.60), "shirt": (58.59, 75.86), "toptee": (59.61, 78.99), "avg": (56.21, 76.14)},
    ),
    (
        "ReCALL",
        "arXiv 2602.01639",
        {"dress": (51.81, 73.48), "shirt": (58.49, 76.59), "toptee": (60.83, 79.19), "avg": (57.04, 76.42)},
    ),
)


class _Record(NamedTuple):
    """A record of a caption file: one or two captions; no target in the test split."""

    reference: str
    captions: tuple[str, ...]
    target: str

    @property
    def caption(self) -> str:
        return " and ".join(self.captions)

    @property
    def wordings(self) -> tuple[str, ...]:
        if len(self.captions) == 1:
            return ()
        first, second = self.captions
        return (self.caption, f"{second} and {first}", first, second)


class _Split(NamedTuple):
    """One category's part of a split: the pictures of the split file, the records of the caption file."""

    gallery: tuple[str, ...]
    records: tuple[_Record, ...]

    @property
    def paired(self) -> tuple[str, ...]:
        """The pictures that are reference or target of a record, in the order of the split file."""
        named = {name for record in self.records for name in (record.reference, record.target)}
        return tuple(name for name in self.gallery if name in named)

    def queries(self, category: Category) -> tuple[Query, ...]:
        return tuple(
            Query(f"{category}-{number}", record.reference, record.caption, (record.target,) if record.target else ())
            for number, record in enumerate(self.records)
        )


class FashionIQ(CIRDataModule):
    """Fashion-IQ (Wu et al., CVPR 2021), ``cir fit --config fashioniq.yaml``.

    Val is scored under three protocols at once, per category (``fashioniq/original/dress``) and as their average
    (``fashioniq/original/avg``): ``original`` ranks the pictures of the split file, the reference among them; ``original-noref`` the same
    without the reference; ``val`` only the references and targets of the category's val queries, without the reference. Figures of
    different protocols cannot be compared. The answers of test are secret: ``cir test`` scores val, ``cir predict`` ranks test.

    A query's caption is both captions, stripped of ``.?,`` and spaces, joined by "and". Training says one of four: both in either order,
    or one of them. Where one of the two is empty (in 13 training triplets and 3 val queries), it is left out.

    Layouts of ``root``, accepted as they are: ``captions/cap.dress.train.json`` and ``image_splits/split.dress.train.json`` as published,
    beside ``images`` or ``resized_images`` with ``B00006M009.jpg`` or ``.png`` (CLIP4Cir, SPRC), or with a folder per category in it; or
    the categories' folders in ``root`` itself (DQU-CIR).

    Args:
        root: folder of the data set.
        categories: those to train on and to score. Fewer than three have no average: it would not be the benchmark's.
        batch_size: see :class:`CIRDataModule`.
        eval_batch_size: see :class:`CIRDataModule`.
        num_workers: see :class:`CIRDataModule`.
        same_group: see :class:`CIRDataModule`; a triplet's group is its category.
        seed: see :class:`CIRDataModule`.
        max_caption_words: see :class:`CIRDataModule`.
        transform: see :class:`CIRDataModule`.
        augment: see :class:`CIRDataModule`.
        missing: see :class:`CIRDataModule`.

    Raises:
        UserError: an argument is out of its range.

    Source: the protocols are those of CLIP4Cir (original), CoVR (original-noref) and VAL (Chen et al., CVPR 2020); the wordings of
        training are CLIP4Cir's.
    """

    def __init__(
        self,
        root: str = "data/fashioniq",
        categories: tuple[Category, ...] = CATEGORIES,
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
        known = bool(categories) and set(categories) <= set(CATEGORIES)
        require(known, "categories", categories, f"one or more of {', '.join(CATEGORIES)}")
        self.root = Path(root).expanduser()
        self.categories = tuple(category for category in CATEGORIES if category in categories)

    @property
    def official(self) -> dict[str, int]:
        """The counts of the annotation files as published; see :class:`CIRDataModule`."""
        counts = {"train triplets": sum(_OFFICIAL[category][0] for category in self.categories)}
        for category in self.categories:
            triplets, queries, whole, paired, secret, secret_gallery = _OFFICIAL[category]
            if len(self.categories) > 1:
                counts[f"train/{category} triplets"] = triplets
            for protocol in _PROTOCOLS:
                counts[f"val/fashioniq/{protocol.name}/{category} queries"] = queries
                counts[f"val/fashioniq/{protocol.name}/{category} gallery"] = whole if protocol.whole_gallery else paired
            counts[f"hidden/fashioniq/test/{category} queries"] = secret
            counts[f"hidden/fashioniq/test/{category} gallery"] = secret_gallery
        return counts

    def read(self) -> Benchmark:
        """Read the records of the categories."""
        train, val, test = ({category: self._read_split(category, split) for category in self.categories} for split in _SPLITS)
        queries = {category: part.queries(category) for category, part in val.items()}
        galleries = [name for part in (*val.values(), *test.values()) for name in part.gallery]
        return Benchmark(
            pictures=self._pictures([*(name for part in train.values() for name in part.paired), *galleries]),
            triplets=tuple(
                Triplet(record.reference, record.caption, record.target, category, record.wordings)
                for category, part in train.items()
                for record in part.records
            ),
            val=tuple(
                self._evaluation_set(protocol, category, part, queries[category])
                for protocol in _PROTOCOLS
                for category, part in val.items()
            ),
            test=(),
            hidden=tuple(
                EvaluationSet(f"fashioniq/test/{category}", part.queries(category), part.gallery, remove_reference=False)
                for category, part in test.items()
            ),
        )

    def _evaluation_set(self, protocol: _Protocol, category: Category, part: _Split, queries: tuple[Query, ...]) -> EvaluationSet:
        return EvaluationSet(
            f"fashioniq/{protocol.name}/{category}",
            queries,
            part.gallery if protocol.whole_gallery else part.paired,
            remove_reference=protocol.remove_reference,
            mean_of=("R@10", "R@50"),
            average=f"fashioniq/{protocol.name}/avg" if self.categories == CATEGORIES else "",
            protocol=protocol.words,
            published=_published(category) if protocol.name == "original" else (),
        )

    def _pictures(self, names: list[str]) -> tuple[Picture, ...]:
        in_root = (".",) if (self.root / self.categories[0]).is_dir() else ()
        folder = PictureFolder(self.root, ("images", "resized_images", *in_root))
        places = self.categories if (folder.folder / self.categories[0]).is_dir() else ()
        # The name stands for the pixels: to hash tens of thousands of files would make every start slow.
        return tuple(Picture(name, folder.path(name, *places), name) for name in dict.fromkeys(names))

    def _read_split(self, category: Category, split: str) -> _Split:
        names = find_file(self.root, (f"image_splits/split.{category}.{split}.json",), "fashioniq")
        captions = find_file(self.root, (f"captions/cap.{category}.{split}.json",), "fashioniq")
        gallery = read_names(names, "a Fashion-IQ split")
        fields, secret = {"candidate": str, "captions": list, "target": str}, ("target",) if split == "test" else ()
        records = [
            _record(record, f"{captions}, record {number}")
            for number, record in enumerate(read_records(captions, fields, "Fashion-IQ captions", optional=secret, blank=secret))
        ]
        known = {*gallery, ""}
        for number, record in enumerate(records):
            for name in (record.reference, record.target):
                if name not in known:
                    raise UserError(f"{captions}, record {number}: picture {name!r:.80} is not in {names}; get both files of one version")
        return _Split(tuple(gallery), tuple(records))


def _record(record: dict[str, Any], place: str) -> _Record:
    captions = record["captions"]
    if not all(isinstance(caption, str) and is_text(caption) for caption in captions) or len(captions) != 2:
        raise UserError(f"{place}: captions={captions!a:.60} are not two sentences, as Fashion-IQ has them; is it the right file?")
    stripped = tuple(filter(None, (caption.strip(".?, ") for caption in captions)))
    if not stripped:
        raise UserError(f"{place}: both captions are empty; write one, or take the record out")
    return _Record(record["candidate"], stripped, record.get("target", ""))


def _published(category: Category) -> tuple[Published, ...]:
    def named(figures: tuple[float, float]) -> tuple[tuple[str, float], ...]:
        return tuple(zip(("R@10", "R@50"), figures, strict=True))

    return tuple(Published(method, named(figures[category]), source, named(figures["avg"])) for method, source, figures in _PUBLISHED)
