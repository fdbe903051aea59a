"""The data module of every benchmark: records in, batches out, on any number of processes."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from data_modules.caption_kinds import count_edits, kinds
from data_modules.collate import PictureCollate, QueryCollate, TripletCollate, content_id
from data_modules.errors import UserError
from data_modules.missing import find_missing, leave_out, refuse_missing
from data_modules.pixels import PixelReader, processors
from data_modules.samplers import GroupedBatchSampler, ShardedBatchSampler
from data_modules.validation import validate
from data_modules.workers import outlive_signals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from data_modules.collate import PictureBatch, QueryBatch, TripletBatch
    from data_modules.images import Transform
    from data_modules.pixels import Augment
    from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Triplet

Split = Literal["val", "test", "predict"]
Missing = Literal["stop", "skip"]
_SPLITS: dict[str, Split] = {"validate": "val", "test": "test", "predict": "predict"}


class CIRDataModule(LightningDataModule, ABC):
    """What all benchmarks have in common. A benchmark implements :meth:`read`, and ``prepare_data`` where it has something to make.

    The loaders deal their batches to the processes themselves: the trainer must run with ``use_distributed_sampler=False``.

    Args:
        batch_size: training triplets per batch of one process.
        eval_batch_size: gallery pictures, or queries, per batch.
        num_workers: worker processes of each loader; None for as many as are of use: none, unless batches hold pixels.
        same_group: share of a training batch in runs of triplets of one group (hard negatives), 0 to 1.
        seed: of the training batches' order; what the benchmark consists of does not depend on it.
        max_caption_words: longest allowed caption, words; a longer one is an error, never cut.
        transform: how pictures become squares (:func:`data_modules.images.to_tensor`).
        augment: what is done to training pictures at every step; other than ``none`` they go through the vision tower every time,
            and not once (:func:`data_modules.pixels.augmented`).
        missing: what to do about picture files that do not exist or were found unreadable by ``cir data check``: ``stop``, or ``skip``
            them and what needs them, counted in every table.

    Attributes:
        root: folder of the data set.
        picture_index: picture name -> position in :attr:`pictures`; after ``setup``.
        content_ids: (P,) int64, equal for pictures with equal pixels; after ``setup``.

    Raises:
        UserError: an argument is out of its range.
    """

    root: Path

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        *,
        num_workers: int | None = None,
        same_group: float = 0.5,
        seed: int = 0,
        max_caption_words: int = 60,
        transform: Transform = "letterbox",
        augment: Augment = "none",
        missing: Missing = "stop",
    ) -> None:
        super().__init__()
        limits = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_caption_words": max_caption_words}
        for key, value in limits.items():
            require(value >= 1, key, value, "1 or more")
        require(num_workers is None or num_workers >= 0, "num_workers", num_workers, "0 or more, or leave it out")
        require(0 <= same_group <= 1, "same_group", same_group, "a share from 0 to 1")
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.same_group, self.seed, self.max_caption_words = same_group, seed, max_caption_words
        self.transform, self.augment, self.missing = transform, augment, missing
        self._side: int | None = None
        self._evaluates_pixels = False
        self._benchmark: Benchmark | None = None
        self.predicts: Literal["test", "val"] = "test"  # what ``cir predict`` ranks

    @abstractmethod
    def read(self) -> Benchmark:
        """Read all records of the data set; called once per process, after ``prepare_data`` has run somewhere.

        Raises:
            UserError: a file is missing or is not as it should be.
        """

    @property
    def official(self) -> Mapping[str, int]:
        """The counts of the benchmark as published, which ``cir data check`` asks for; empty where nobody has published any.

        Keys name a part and what is counted: ``train triplets``, or ``train/dress triplets`` of a group of at most ten; ``queries`` and
        ``gallery`` of an evaluation set after its split: ``val/fashioniq/original/dress queries``, ``hidden/circo gallery``. Only parts
        that the arguments ask for are among them.
        """
        return {}

    def describe(self, query: Query) -> dict[str, tuple[str, ...]]:
        """What is known of a query, by which ``cir analyze`` sorts its result: name of a property -> its values, after ``setup``.

        The table ``queries.csv`` has its own ``group``, ``query``, ``reference``, ``caption``, ``rank`` and ``words``; a property of such a
        name is not in it.

        By default the number of edits and their kinds, read off the caption by rule (:mod:`data_modules.caption_kinds`).
        """
        return {"edits": (str(count_edits(query.caption)),), "kind of edit": kinds(query.caption)}

    def setup(self, stage: str | None = None) -> None:
        """Read and check the records, once; refuse what cannot train before anything is computed or written.

        Raises:
            UserError: see :meth:`read` and :func:`data_modules.validation.validate`; the batches would have no in-batch negatives; there
                are too few triplets for one batch; there are no queries to validate, test or predict.
        """
        if self._benchmark is None:
            with _without_collector():
                benchmark = self.read()
                validate(benchmark, self.max_caption_words)
            if self.missing == "skip":
                benchmark = leave_out(benchmark, find_missing(benchmark.pictures, self.root))
            self.picture_index = {picture.name: at for at, picture in enumerate(benchmark.pictures)}
            self.content_ids = torch.tensor([content_id(picture.content) for picture in benchmark.pictures])
            self._benchmark = benchmark
        if stage == "fit":
            self._training_sampler()
        elif stage in _SPLITS and not self.evaluation_sets(_SPLITS[stage]):
            what = "val" if stage == "validate" or self.predicts == "val" else "test"
            raise UserError(f"{type(self).__name__} has no queries in its {what} split; hold some out, or ask for another split")

    @property
    def benchmark(self) -> Benchmark:
        """All records.

        Raises:
            RuntimeError: before ``setup``.
        """
        if self._benchmark is None:
            raise RuntimeError(f"{type(self).__name__} has no records yet; call prepare_data() and setup() first")
        return self._benchmark

    @property
    def recipe(self) -> str:
        """Name of the benchmark's recipe, without its suffix."""
        return type(self).__name__.removesuffix("CIR").lower()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every picture of the data set; batches hold positions in this tuple."""
        return self.benchmark.pictures

    @property
    def triplets(self) -> tuple[Triplet, ...]:
        """The training examples."""
        return self.benchmark.triplets

    def evaluation_sets(self, split: Split) -> tuple[EvaluationSet, ...]:
        """The evaluation sets of a split; where only a server knows the test split's answers, ``test`` is val.

        ``predict`` is what :attr:`predicts` says: the test split, secret or not, or val.
        """
        benchmark = self.benchmark
        if split == "predict" and self.predicts == "test":
            return benchmark.hidden or benchmark.test or benchmark.val
        return benchmark.test if split == "test" and benchmark.test else benchmark.val

    def scored(self, split: Split) -> Split:
        """The split that :meth:`evaluation_sets` gives for one with answers: ``val`` for a secret ``test``."""
        return "test" if split == "test" and self.benchmark.test else "val"

    def gallery_pictures(self, split: Split) -> tuple[str, ...]:
        """Names of the distinct pictures in the galleries of a split, in the order of ``PictureBatch.index``."""
        return tuple(dict.fromkeys(name for evaluation in self.evaluation_sets(split) for name in evaluation.gallery))

    def distinct_queries(self, split: Split) -> dict[tuple[str, str], int]:
        """Reference and caption of the distinct queries of a split -> their position, which is ``QueryBatch.index``."""
        asked = ((q.reference, q.caption) for evaluation in self.evaluation_sets(split) for q in evaluation.queries)
        return {query: at for at, query in enumerate(dict.fromkeys(asked))}

    def train_pictures(self) -> list[int]:
        """Positions of all pictures that training may look at, ascending."""
        paired = (name for triplet in self.triplets for name in (triplet.reference, triplet.target))
        return sorted({self.picture_index[name] for name in (*paired, *self.benchmark.unpaired)})

    def evaluation_pictures(self, split: Split) -> list[int]:
        """Positions of all pictures that a split's galleries and queries need, ascending."""
        references = (reference for reference, _ in self.distinct_queries(split))
        return sorted({self.picture_index[name] for name in (*self.gallery_pictures(split), *references)})

    def require_pictures(self, positions: Sequence[int]) -> None:
        """Stop if one of these picture files does not exist.

        Raises:
            UserError: see :func:`data_modules.missing.refuse_missing`.
        """
        refuse_missing((self.pictures[at] for at in positions), self.recipe, self.root)

    def bring_pixels(self, side: int, *, evaluation: bool) -> None:
        """Let batches of loaders that are made from now on hold pixels.

        Args:
            side: S, pixels.
            evaluation: whether also those of evaluation.
        """
        self._side, self._evaluates_pixels = side, evaluation

    def train_dataloader(self) -> DataLoader[TripletBatch]:
        """Batches of triplets."""
        sampler = self._training_sampler()
        if self.trainer:  # a resumed Lightning goes on counting in the middle of an epoch, but would begin its data anew
            progress = self.trainer.fit_loop.epoch_loop.batch_progress
            sampler.seen = lambda: progress.current.completed
        pixels = PixelReader(self.pictures, self._side, self.transform, self.augment) if self._side else None
        collate = TripletCollate(self.triplets, self.picture_index, self.content_ids, pixels)
        return self._loader(len(self.triplets), sampler, collate)

    def _training_sampler(self) -> GroupedBatchSampler:
        rank, world = self._place()
        if self.batch_size * world == 1:
            raise UserError("data.batch_size is 1 on one process: the loss needs in-batch negatives; set --data.batch_size 2 or more")
        groups = [triplet.group for triplet in self.triplets]
        return GroupedBatchSampler(groups, self.batch_size, same_group=self.same_group, seed=self.seed, rank=rank, world=world)

    def val_dataloader(self) -> list[DataLoader[PictureBatch | QueryBatch]]:
        """Two loaders, one after the other: the gallery's pictures, the queries."""
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> list[DataLoader[PictureBatch | QueryBatch]]:
        """As :meth:`val_dataloader`, of the test split."""
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[PictureBatch | QueryBatch]]:
        """As :meth:`test_dataloader`, of the split to predict."""
        return self._evaluation_loaders("predict")

    def _evaluation_loaders(self, split: Split) -> list[DataLoader[PictureBatch | QueryBatch]]:
        names = self.gallery_pictures(split)
        queries = list(self.distinct_queries(split))
        if not queries:
            return []
        rank, world = self._place()
        pictures = torch.tensor([self.picture_index[name] for name in names])
        reader = PixelReader(self.pictures, self._side, self.transform) if self._side and self._evaluates_pixels else None
        collates = (len(names), PictureCollate(pictures, reader)), (len(queries), QueryCollate(queries, self.picture_index, reader))
        return [
            self._loader(length, ShardedBatchSampler(length, self.eval_batch_size, rank=rank, world=world), collate)
            for length, collate in collates
        ]

    def _place(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self,
        length: int,
        sampler: GroupedBatchSampler | ShardedBatchSampler,
        collate: TripletCollate | PictureCollate | QueryCollate,
    ) -> DataLoader[Any]:
        workers = self.num_workers
        if workers is None:
            workers = 0 if collate.pixels is None else self._useful_workers()
        return DataLoader(
            _Items(length),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=outlive_signals,
            pin_memory=collate.pixels is not None and torch.cuda.is_available(),
        )

    def _useful_workers(self) -> int:
        """One processor less than this process' share, and not more than feed a GPU."""
        return max(1, min(8, processors() // (self.trainer.num_devices if self.trainer else 1) - 1))


class _Items(Dataset[Any]):
    """What the sampler draws is all the data set there is; the collate function makes batches of it."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: Any) -> Any:
        return item


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's garbage collector from walking over all of torch again and again while 100,000 records are made."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def require(fine: bool, key: str, value: object, wanted: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Refuse a constructor argument that is out of its range.

    Raises:
        UserError: ``fine`` is false; names the key, the value and what is wanted.
    """
    if not fine:
        raise UserError(f"data.{key} is {value!r}; set --data.{key} to {wanted}")
