"""CIRR: real-life pictures in sets of six look-alikes, a test split whose answers only a server knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_modules.annotations import PictureFolder, find_file, read_json, read_records, require_names
from data_modules.base import CIRDataModule
from data_modules.errors import UserError
from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Submission, Triplet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from data_modules.base import Missing
    from data_modules.images import Transform
    from data_modules.pixels import Augment

VERSION = "rc2"
FOLDERS = ("", "cirr/", "cirr_dataset/cirr/")  # of the annotations: CIRR's own; CLIP4Cir's, SPRC's and SEARLE's; their parent
PICTURES = ("img_raw", "images", "cirr_dataset", ".")
FIELDS = {"reference": str, "target_hard": str, "caption": str, "img_set": dict}
SET = 6  # pictures of an image set
PROTOCOL = (
    "CIRR rc2: the gallery is the whole split, the reference is removed; R_subset ranks the other five pictures of the query's image set"
)


class CIRR(CIRDataModule):
    """CIRR (rc2): ``cirr`` over val; test1 is hidden and predicted for the server, as ``cirr`` and, among the image set, ``cirr/subset``.

    The folder is a clone of the repository's branch ``cirr_dataset`` with the pictures of NLVR2 in ``img_raw`` or ``images``, or the
    ``cirr_dataset`` of CLIP4Cir and SPRC. Pictures lie as in the split files (``train/34/train-11041-2-img0.png``), without the numbered
    folders of train, or all in one folder.

    Args:
        root: folder of the data set.
        batch_size: see :class:`CIRDataModule`.
        eval_batch_size: see :class:`CIRDataModule`.
        num_workers: see :class:`CIRDataModule`.
        same_group: see :class:`CIRDataModule`; a group is an image set, so hard negatives are look-alikes.
        seed: see :class:`CIRDataModule`.
        max_caption_words: see :class:`CIRDataModule`.
        transform: see :class:`CIRDataModule`.
        augment: see :class:`CIRDataModule`.
        missing: see :class:`CIRDataModule`.

    Raises:
        UserError: an argument is out of its range.

    Source: Liu et al., ICCV 2021; https://github.com/Cuberick-Orion/CIRR.
    """

    def __init__(
        self,
        root: str = "data/cirr",
        batch_size: int = 128,
        *,
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
        """The counts of rc2; papers say 4,184 queries of val, which is a misprint. See :class:`CIRDataModule`."""
        counts = {"train triplets": 28_225, "val/cirr queries": 4_181, "val/cirr gallery": 2_297}
        for name in ("cirr", "cirr/subset"):
            counts |= {f"hidden/{name} queries": 4_148, f"hidden/{name} gallery": 2_315}
        return counts

    def read(self) -> Benchmark:
        """Read the captions and the split files of train, val and test1."""
        splits = {split: self._paths(split) for split in ("train", "val", "test1")}
        train, val, test1 = (self._records(split, paths) for split, paths in splits.items())
        hidden = EvaluationSet(
            "cirr", _queries(test1), tuple(splits["test1"]), protocol=PROTOCOL, submission=_submission("cirr_recall.json", 50, "recall")
        )
        subset = replace(
            hidden,
            name="cirr/subset",
            recall_at=(1, 2, 3),
            members_only=True,
            submission=_submission("cirr_recall_subset.json", 3, "recall_subset"),
        )
        scored = replace(hidden, queries=_queries(val), gallery=tuple(splits["val"]), mean_of=("R@5", "R_subset@1"), submission=None)
        pictures = (picture for paths in splits.values() for picture in self._pictures(paths))
        return Benchmark(tuple(pictures), tuple(map(_triplet, train)), (scored,), (), (hidden, subset))

    def _file(self, folder: str, kind: str, split: str) -> Path:
        candidates = [f"{above}{folder}/{kind}.{VERSION}.{split}.json" for above in FOLDERS]
        try:
            return find_file(self.root, candidates, "cirr")
        except UserError as error:
            for candidate in candidates:
                if others := sorted(filter(Path.is_file, (self.root / candidate).parent.glob(f"{kind}.*.{split}.json"))):
                    raise UserError(
                        f"cirr: {others[0]} is of another version of CIRR, and figures are of {VERSION}; get {candidate!r}, too"
                    ) from error
            raise

    def _paths(self, split: str) -> dict[str, str]:
        """The split file: picture name -> ``./train/34/train-11041-2-img0.png``."""
        file = self._file("image_splits", "split", split)
        paths = read_json(file)
        if not isinstance(paths, dict) or not all(isinstance(path, str) for path in paths.values()):
            raise UserError(f"{file}: not a JSON object of names and paths, as CIRR's split files are; is it another benchmark's file?")
        require_names((*paths, *paths.values()), file)
        return paths

    def _records(self, split: str, paths: Mapping[str, str]) -> list[dict[str, Any]]:
        """The captions file, whose pictures must be in the split."""
        file, what = self._file("captions", "cap", split), f"CIRR's captions of {split}"
        if split == "train":
            records = read_records(file, FIELDS, what, optional=("img_set",))
        else:
            optional, blank = (("target_hard",), ("caption",)) if split == "test1" else ((), ())
            records = read_records(file, FIELDS | {"pairid": int}, what, optional=optional, blank=blank, unique="pairid")
        for number, record in enumerate(records):
            if flaw := _flaw(record, split, paths):
                raise UserError(f"{file}, record {number}: {flaw}; get both files of one version")
        return records

    def _pictures(self, paths: Mapping[str, str]) -> list[Picture]:
        """Pictures of a split. Hashing 21,551 files at every start would take longer than all the rest: the name stands for the content."""
        folder = PictureFolder(self.root, PICTURES)
        found = []
        for name, path in paths.items():
            official = path.removeprefix("./").rpartition("/")[0]
            found.append(Picture(name, folder.path(name, official, official.partition("/")[0], ""), name))
        return found


def _submission(file: str, names: int, metric: str) -> Submission:
    """Source: https://github.com/Cuberick-Orion/CIRR/blob/main/Test-split_server.md."""
    return Submission(file, names, (("version", VERSION), ("metric", metric)))


def _flaw(record: Mapping[str, Any], split: str, paths: Mapping[str, str]) -> str:
    """What is wrong with a record that has its fields; empty if nothing is."""
    asked, image_set = (record["reference"], *_target(record)), record.get("img_set", {})
    if outside := [name for name in asked if name not in paths]:
        return f"{outside[0]!r:.80} is no picture of the split {split}"
    if split != "train":
        return _flaw_of_members(image_set.get("members"), asked, paths)
    number = image_set.get("id", "")  # nothing else is read of the image sets of train
    return "" if isinstance(number, int | str) else f"img_set has the id {number!r:.60}, not a number"


def _flaw_of_members(members: Any, asked: tuple[str, ...], paths: Mapping[str, str]) -> str:
    if not isinstance(members, list) or not all(isinstance(name, str) for name in members):
        return f"img_set has the members {members!r:.60}, not a list of names"
    if len(members) != SET or len(set(members)) != SET:
        return f"img_set has {len(members)} members, {len(set(members))} of them different, and not {SET} different ones"
    if lacking := [name for name in asked if name not in members]:
        return f"img_set has not {lacking[0]!r}, the reference or the target, among its members"
    outside = [name for name in members if name not in paths]
    return f"img_set has the member {outside[0]!r:.80}, which is no picture of the split" if outside else ""


def _target(record: Mapping[str, Any]) -> tuple[str, ...]:
    return (record["target_hard"],) if "target_hard" in record else ()


def _triplet(record: Mapping[str, Any]) -> Triplet:
    group = record.get("img_set", {}).get("id", "")
    return Triplet(record["reference"], record["caption"], record["target_hard"], str(group))


def _queries(records: list[dict[str, Any]]) -> tuple[Query, ...]:
    return tuple(
        Query(
            str(record["pairid"]),
            record["reference"],
            record["caption"].strip(),  # one of test1 is a space
            _target(record),
            tuple(record["img_set"]["members"]),
        )
        for record in records
    )
