"""GeneCIS: four zero-shot tasks, each query with a small gallery of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_modules.annotations import PictureFolder, find_file, read_records
from data_modules.base import require
from data_modules.errors import UserError
from data_modules.records import Benchmark, EvaluationSet, Picture, Query
from data_modules.zeroshot import ZeroShotDataModule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from data_modules.base import CIRDataModule, Missing
    from data_modules.images import Transform
    from data_modules.pixels import Augment

Task = Literal["focus_attribute", "change_attribute", "focus_object", "change_object"]
TASKS: tuple[Task, ...] = ("focus_attribute", "change_attribute", "focus_object", "change_object")
QUERIES = {"focus_attribute": 2_000, "change_attribute": 2_112, "focus_object": 1_960, "change_object": 1_960}
FIELDS = {"reference": dict, "target": dict, "gallery": list, "condition": str}
VISUAL_GENOME = ("VG_100K_all", "VG_100K", "VG_100K_2")  # all of version 1.2 as the authors have it; its two archives
DILATION = 0.7  # of the object's width and height
PROTOCOL = "GeneCIS: each query ranks its own target and distractors (10 pictures in focus_attribute, 15 in the others)"


class GeneCIS(ZeroShotDataModule):
    """GeneCIS: ``genecis/focus_attribute`` and three more, and their mean ``genecis/avg``. It has no splits and no training triplets.

    The folder has the four annotation files (or their folder ``genecis``), ``val2017`` of COCO for the object tasks, and ``VG_100K_all``
    (or ``VG_100K`` and ``VG_100K_2``) of Visual Genome 1.2 for the attribute tasks, whose pictures are objects cut out of these.

    Args:
        root: folder of the data set.
        train: data set whose triplets it is trained on; None where nothing is trained.
        tasks: the tasks to score; the mean of fewer than four is named ``genecis/avg_of_2`` and so on, as it is another figure.
        batch_size: see :class:`CIRDataModule`.
        eval_batch_size: see :class:`CIRDataModule`.
        num_workers: see :class:`CIRDataModule`.
        same_group: see :class:`CIRDataModule`.
        seed: see :class:`CIRDataModule`.
        max_caption_words: see :class:`CIRDataModule`.
        transform: see :class:`CIRDataModule`; ``plain`` is the authors'.
        augment: see :class:`CIRDataModule`.
        missing: see :class:`CIRDataModule`.

    Raises:
        UserError: an argument is out of its range.

    Source: Vaze et al., CVPR 2023; https://github.com/facebookresearch/genecis.
    """

    def __init__(
        self,
        root: str = "data/genecis",
        train: CIRDataModule | None = None,
        *,
        tasks: tuple[Task, ...] = TASKS,
        batch_size: int = 128,
        eval_batch_size: int = 128,
        num_workers: int | None = None,
        same_group: float = 0.5,
        seed: int = 0,
        max_caption_words: int = 60,
        transform: Transform = "plain",
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
        require(len(tasks) == len(set(tasks)) > 0, "tasks", tasks, f"some of {', '.join(TASKS)}, each once")
        self.root, self.train, self.tasks = Path(root).expanduser(), train, tasks

    @property
    def official(self) -> dict[str, int]:
        """The counts of the annotation files; see :class:`CIRDataModule`."""
        return {f"val/genecis/{task} queries": QUERIES[task] for task in self.tasks}

    def read_own(self) -> Benchmark:
        """Read the annotation files of the tasks."""
        pictures = _Pictures(self.root)
        sets = tuple(self._task(task, pictures) for task in self.tasks)
        return Benchmark(tuple(pictures.named.values()), (), sets, ())

    def _task(self, task: Task, pictures: _Pictures) -> EvaluationSet:
        try:
            file = find_file(self.root, (f"genecis/{task}.json", f"{task}.json"), "genecis")
        except UserError as error:
            raise UserError(f"{error}, or leave the task out with --data.tasks") from error
        name = pictures.crop if task.endswith("attribute") else pictures.whole
        queries = []
        for number, record in enumerate(read_records(file, FIELDS, f"GeneCIS's {task}")):
            try:
                reference, *members = map(name, (record["reference"], record["target"], *record["gallery"]))
            except (KeyError, TypeError, ValueError, OverflowError) as error:  # the last one: infinite numbers
                raise UserError(f"{file}, record {number}: no pictures of {task} ({error!r}); is it the file of another task?") from error
            distinct = tuple(dict.fromkeys(members))  # a few of the authors' galleries have a picture twice
            queries.append(Query(str(number), reference, record["condition"], distinct[:1], distinct))
        return EvaluationSet(
            f"genecis/{task}",
            tuple(queries),
            tuple(dict.fromkeys(name for query in queries for name in query.members)),
            remove_reference=False,  # it is a distractor of 79 queries of change_attribute, where the authors leave it
            recall_at=(1, 2, 3),
            members_only=True,
            average="genecis/avg" if len(self.tasks) == len(TASKS) else f"genecis/avg_of_{len(self.tasks)}",
            protocol=PROTOCOL,
        )


class _Pictures:
    """The pictures that annotations name. Hashing their files at every start would take minutes: the name stands for the content."""

    def __init__(self, root: Path) -> None:
        self.folder = PictureFolder(root, (".",))
        self.named: dict[str, Picture] = {}

    def whole(self, entry: Mapping[str, Any]) -> str:
        """Name of a picture of COCO val2017."""
        number = int(str(entry["val_image_id"]))  # so 139.7 and true are no numbers
        return self._add(f"coco/{number}", f"{number:012d}.jpg", ("val2017",))

    def crop(self, entry: Mapping[str, Any]) -> str:
        """Name of an object in a Visual Genome picture, with some of the picture around it.

        The box begins 0.7 of the object's width and height left of and above it, or at the picture's edge, and is 1.7 times as wide and
        high: so it ends where the object does, or beyond it if it begins at an edge. :func:`data_modules.images.cut` does the rest.

        Source: ``datasets/vaw_dataset.py`` of the authors.
        """
        x, y, width, height = entry["instance_bbox"]
        left, top = max(0, x - DILATION * width), max(0, y - DILATION * height)
        box = (round(left), round(top), round(left + (1 + DILATION) * width), round(top + (1 + DILATION) * height))
        number = int(str(entry["image_id"]))
        return self._add(f"vg/{number}/{'-'.join(map(str, box))}", f"{number}.jpg", VISUAL_GENOME, box)

    def _add(self, name: str, file: str, places: tuple[str, ...], box: tuple[int, int, int, int] | None = None) -> str:
        if name not in self.named:
            self.named[name] = Picture(name, self.folder.path(file, *places), name, box=box)
        return name
