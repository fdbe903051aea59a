"""CIRCO: zero-shot retrieval among the unlabeled pictures of COCO, with several right answers per query."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_modules.annotations import PictureFolder, find_file, read_records, require_names
from data_modules.errors import UserError
from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Submission
from data_modules.zeroshot import ZeroShotDataModule

if TYPE_CHECKING:
    from data_modules.base import CIRDataModule, Missing
    from data_modules.images import Transform
    from data_modules.pixels import Augment

INFO = ("COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", "annotations/image_info_unlabeled2017.json")
PICTURES = ("COCO2017_unlabeled/unlabeled2017", "unlabeled2017")
FIELDS = {"id": int, "reference_img_id": int, "relative_caption": str, "shared_concept": str}
PROTOCOL = "CIRCO: the gallery is all of COCO unlabeled2017, the reference is kept; mAP@K of all right answers, R@K of the first"


class CIRCO(ZeroShotDataModule):
    """CIRCO: ``circo`` over val; test is hidden and predicted for the server. It has no training triplets.

    The folder is a clone of the official repository with COCO's unlabeled pictures and ``image_info_unlabeled2017.json`` in
    ``COCO2017_unlabeled``. Pictures are named by their COCO id: ``271520``.

    Args:
        root: folder of the data set.
        train: data set whose triplets it is trained on; None where nothing is trained.
        shared_concept: say what reference and target have in common, too: "find a double bed but is in a room with wooden walls".
            Figures with and without it cannot be compared; papers that do not speak of it are without.
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

    Source: Baldrati et al., ICCV 2023; https://github.com/miccunifi/CIRCO. The wording with the shared concept is that of MagicLens (Zhang
    et al., ICML 2024).
    """

    def __init__(
        self,
        root: str = "data/circo",
        train: CIRDataModule | None = None,
        *,
        shared_concept: bool = False,
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
        self.root, self.train, self.shared_concept = Path(root).expanduser(), train, shared_concept

    @property
    def official(self) -> dict[str, int]:
        """The counts of CIRCO and of COCO's unlabeled pictures; see :class:`CIRDataModule`."""
        queries = {"val/circo queries": 220, "hidden/circo queries": 800}
        return queries | {"val/circo gallery": 123_403, "hidden/circo gallery": 123_403}

    def read_own(self) -> Benchmark:
        """Read val, test and the list of COCO's pictures."""
        pictures = self._pictures()
        known = {picture.name for picture in pictures}
        protocol = PROTOCOL + (", with the shared concept in the caption" if self.shared_concept else "")
        ks = (5, 10, 25, 50)
        val, test = (
            EvaluationSet(
                "circo",
                self._queries(split, known),
                tuple(picture.name for picture in pictures),
                remove_reference=False,
                recall_at=ks,
                map_at=ks,
                recall_of="first",
                protocol=protocol,
                submission=submission,
            )
            for split, submission in (("val", None), ("test", Submission("circo.json", 50, integers=True)))
        )
        return Benchmark(pictures, (), (val,), (), (test,))

    def _pictures(self) -> tuple[Picture, ...]:
        """All pictures of COCO's list. Hashing 123,403 files at every start would take minutes: the COCO id stands for the content."""
        file = find_file(self.root, INFO, "circo")
        images = read_records(file, {"id": int, "file_name": str}, "the pictures of COCO's image_info", inside="images", unique="id")
        require_names((image["file_name"] for image in images), file)
        folder = PictureFolder(self.root, PICTURES)
        return tuple(Picture(str(image["id"]), folder.path(image["file_name"]), str(image["id"])) for image in images)

    def _queries(self, split: str, known: set[str]) -> tuple[Query, ...]:
        file = find_file(self.root, (f"annotations/{split}.json",), "circo")
        answers = {"target_img_id": int, "gt_img_ids": list} if split == "val" else {}
        records = read_records(file, FIELDS | answers, f"CIRCO's annotations of {split}", unique="id")
        queries = []
        for number, record in enumerate(records):
            reference, targets = str(record["reference_img_id"]), _targets(record, f"{file}, record {number}")
            if outside := [name for name in (reference, *targets) if name not in known]:
                raise UserError(f"{file}, record {number}: picture {outside[0]!r:.80} is not in {INFO[0]}; get both files of one version")
            queries.append(Query(str(record["id"]), reference, self._caption(record), targets))
        return tuple(queries)

    def _caption(self, record: dict[str, Any]) -> str:
        caption: str = record["relative_caption"]
        return f"find {record['shared_concept']} but {caption}" if self.shared_concept else caption


def _targets(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """All right answers, the target first; none of a test query."""
    if "gt_img_ids" not in record:
        return ()
    target, right = record["target_img_id"], record["gt_img_ids"]
    if target not in right:
        raise UserError(f"{where}: target_img_id {target} is not among gt_img_ids {right!r:.80}; get the file again")
    return (str(target), *(str(number) for number in right if number != target))
