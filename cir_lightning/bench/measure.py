"""The works that ``cir bench`` measures, done as the commands do them: training by a trainer, encoding as its evaluation does.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from cir_lightning.bench.machine import matrix_peak
from cir_lightning.bench.results import COLD_LATENCY, GALLERY, LATENCY, PICTURES, QUERIES, TRAINING, Work
from cir_lightning.bench.rounds import Rounds, stepping
from cir_lightning.bench.training import Again, AtStart, Driver, make_trainer, quiet
from cir_lightning.cache import BATCH, GPU_BATCH
from data_modules.collate import distinct
from data_modules.errors import UserError
from data_modules.pixels import PixelReader
from data_modules.stages import RANKING, TOWER, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lightning.pytorch import Callback

    from cir_lightning.module import CIRModule
    from data_modules.base import CIRDataModule, Split

SPLIT: Split = "val"  # what training has the features of
ASKED = 4  # different queries in each round of the latency


class Bencher:
    """Measures one model on one machine, in one process.

    Args:
        module: not built yet.
        data: the benchmark.
        trainer: the recipe's arguments of the trainer.
        rounds: to be timed.
        say: is told what is being measured.
        traces: folder for the traces of torch's profiler; None for no traces.
    """

    def __init__(
        self,
        module: CIRModule,
        data: CIRDataModule,
        trainer: Any,
        *,
        rounds: int,
        say: Callable[[str], None] = print,
        traces: Path | None = None,
    ) -> None:
        self.module, self.data, self.settings, self.rounds, self.say, self.traces = module, data, trainer, rounds, say, traces
        self.works: list[Work] = []
        self.traced: list[Path] = []
        self.training_size, self.evaluation_size = data.batch_size, data.eval_batch_size
        self.device = make_trainer(trainer, [], 0).strategy.root_device

    def run(self, batches: Sequence[int]) -> list[Work]:
        """Measure everything at these batch sizes.

        Raises:
            UserError: the model cannot be built, or the recipe itself would be refused.
        """
        self.data.prepare_data()
        self.data.setup()
        self._fit(AtStart(lambda: None), max_steps=0)  # reads weights, and gets the features of all pictures into the cache
        for batch in batches:
            self._train(batch, traced=self._is_traced(batch, batches, self.training_size))
        self.data.batch_size = self.training_size
        self._fit(AtStart(lambda: self._evaluate(batches)), max_steps=0)
        return self.works

    def _is_traced(self, batch: int, batches: Sequence[int], recipe: int) -> bool:
        """Only the batch size that is nearest to the recipe's."""
        possible = [one for one in batches if one > 1] or batches
        return self.traces is not None and batch == min(possible, key=lambda one: abs(one - recipe))

    @contextmanager
    def _work(self, kind: str, batch: int) -> Iterator[Work]:
        """A new work, which may turn out to be impossible."""
        self.say(f"{kind}, batch {batch}")
        work = Work(kind, batch)
        self.works.append(work)
        try:
            yield work
            work.matrix = matrix_peak(self.device, str(self.settings.precision or ""))
        except UserError as error:
            work.refused = str(error)
        except torch.OutOfMemoryError:
            work.refused = f"out of memory with {batch} at once"
        if work.refused:
            torch.cuda.empty_cache()
            work.seconds, work.unobserved = [], []
            self.say(f"  not measured: {work.refused}")

    def _rounds(self, work: Work, *, traced: bool = False, rounds: int | None = None) -> Rounds:
        trace = self.traces / f"{work.kind}.trace.json.gz" if traced and self.traces else None
        self.traced += [trace] if trace and trace not in self.traced else []
        return Rounds(work, self.module.encoder, self.device, rounds or self.rounds, trace)

    # ---- training ------------------------------------------------------------------------------------------------------------------

    def _train(self, batch: int, *, traced: bool) -> None:
        with self._work(TRAINING, batch) as work:
            self.data.trainer, self.data.batch_size = None, batch
            loader = self.data.train_dataloader()
            draws = next(iter(loader.batch_sampler))  # type: ignore[arg-type]
            first = loader.collate_fn(draws)
            work.pictures = len(distinct(first.reference, first.target)[0])
            work.notes += _read_within(loader)
            rounds = self._rounds(work, traced=traced)
            self.data.train_dataloader = lambda: Again(lambda: loader.collate_fn(draws), len(rounds))  # type: ignore[assignment, method-assign, return-value]
            try:
                with stepping(rounds) as steps:
                    self._fit(Driver(steps), max_steps=len(rounds))
            finally:
                del self.data.train_dataloader

    def _fit(self, callback: Callback, max_steps: int) -> None:
        gc.collect()  # the trainer before, so that its memory is not counted
        trainer = make_trainer(self.settings, [callback], max_steps)
        try:
            with quiet():
                trainer.fit(self.module, datamodule=self.data)
        except SystemExit as left:
            if isinstance(left.__context__, KeyboardInterrupt):  # Lightning tidies up and leaves with 1
                raise KeyboardInterrupt from left
            raise

    # ---- evaluation ----------------------------------------------------------------------------------------------------------------

    def _evaluate(self, batches: Sequence[int]) -> None:
        module = self.module
        module.eval()
        with module.trainer.precision_plugin.forward_context(), torch.inference_mode():
            if not module.encoder.tower.trained:
                for batch in batches:
                    self._see(batch)
            if not self.data.evaluation_sets(SPLIT):
                said = f"{type(self.data).__name__} holds out no queries; hold some out"
                self.works += [Work(kind, batch, refused=said) for kind in (GALLERY, QUERIES) for batch in batches]
                return
            module._start_evaluation(SPLIT)
            for number, kind in enumerate((GALLERY, QUERIES)):
                for batch in batches:
                    self._encode(kind, number, batch, traced=number == 0 and self._is_traced(batch, batches, self.evaluation_size))
            self._rank()
            self._answer()

    def _see(self, batch: int) -> None:
        """What the cache does once for every picture: read it, make it a square, show it to the vision tower."""
        with self._work(PICTURES, batch) as work:
            pictures = torch.tensor(self.data.train_pictures()[:batch])
            work.pictures = _enough(len(pictures), batch, "pictures")
            encoder = self.module.encoder
            size = BATCH if self.device.type == "cpu" else GPU_BATCH
            towers = [encoder.tower, *([] if encoder.vision is None else [encoder.vision])]
            for _ in self._rounds(work):
                for part in pictures.split(size):  # type: ignore[no-untyped-call]
                    pixels = self._pixels(part)
                    with stage(TOWER):
                        for tower in towers:
                            tower(pixels).cpu()

    def _pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (n,) long as (n, 3, S, S) uint8."""
        read = PixelReader(self.data.pictures, self.module.encoder.tower.image_size, self.data.transform)
        return read(pictures).to(self.device)

    def _encode(self, kind: str, number: int, batch: int, *, traced: bool) -> None:
        """Evaluation's batch in the middle: queries come in the order of their captions' lengths."""
        with self._work(kind, batch) as work:
            self.data.eval_batch_size = batch
            loader = self.data._evaluation_loaders(SPLIT)[number]
            several: list[Any] = list(loader.batch_sampler)  # type: ignore[arg-type]
            members = several[(len(several) - 1) // 2]
            _enough(len(members), batch, "gallery pictures" if kind == GALLERY else "queries")
            work.pictures = batch
            work.notes += _read_within(loader)
            memory = self.module.within_memory
            memory.size = None
            for _ in self._rounds(work, traced=traced):
                self.module.encoder.forget()
                given = loader.collate_fn(members)
                pixels = None if given.pixels is None else given.pixels.to(self.device)
                self.module._evaluation_step(given._replace(index=given.index.to(self.device), pixels=pixels))
                self.module.tables[number].reset()
            if memory.size is not None and memory.size < batch:
                work.notes.append(f"memory does not hold {batch} at once: it was encoded in pieces of {memory.size}")

    def _vectors(self, count: int) -> torch.Tensor:
        """Random unit vectors (count, E): ranking takes as long with any others."""
        draw = torch.Generator().manual_seed(0)
        return F.normalize(torch.randn(count, self.module.encoder.width, generator=draw), dim=1).to(self.device)

    def _rank(self) -> None:
        sizes = evaluation_sizes(self.data)
        with self._work(RANKING, sizes["queries"]) as work:
            for table, count in zip(self.module.tables, (sizes["gallery"], sizes["queries"]), strict=True):
                table.reset()
                table.update(torch.arange(count, device=self.device), self._vectors(count))
            for _ in self._rounds(work):
                self.module._finish_evaluation(SPLIT)
            work.notes.append(f"{sizes['queries']:,} queries, {sizes['gallery']:,} pictures, random unit vectors")

    def _answer(self) -> None:
        """One query after the other, from a picture to a ranked list of the gallery."""
        queries = list(self.data.distinct_queries(SPLIT))
        queries = queries[:: max(1, len(queries) // (ASKED * self.rounds))]
        gallery = self._vectors(evaluation_sizes(self.data)["gallery"])

        def cold(at: int, caption: str) -> torch.Tensor:
            sight = self.module.encoder.look(self._pixels(torch.tensor([at])))
            return self.module.encoder.encode_query(sight, [caption])

        def warm(at: int, caption: str) -> torch.Tensor:
            return self.module.encoder.encode_query(self.module.see(torch.tensor([at])), [caption])

        works = {COLD_LATENCY: cold} if self.module.encoder.tower.trained else {LATENCY: warm, COLD_LATENCY: cold}
        for kind, encode in works.items():
            with self._work(kind, 1) as work:
                work.pictures = 1
                for _, (reference, caption) in zip(self._rounds(work, rounds=ASKED * self.rounds), cycle(queries)):
                    self.module.encoder.forget()
                    vector = encode(self.data.picture_index[reference], caption)[0]
                    with stage(RANKING):
                        (gallery @ vector).sort(descending=True, stable=True)[1].cpu()


def evaluation_sizes(data: CIRDataModule) -> dict[str, int]:
    """Distinct queries and gallery pictures of the split that is ranked."""
    return {"queries": len(data.distinct_queries(SPLIT)), "gallery": len(data.gallery_pictures(SPLIT))}


def _read_within(loader: Any) -> list[str]:
    """A note where batches hold pixels."""
    said = f"pictures are read within the step; a run reads them ahead, in {loader.num_workers} processes of the loader"
    return [said] if loader.collate_fn.pixels is not None else []


def _enough(found: int, batch: int, what: str) -> int:
    if found < batch:
        raise UserError(f"there are only {found} {what} for a batch of {batch}")
    return found
