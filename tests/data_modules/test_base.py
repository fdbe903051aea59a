from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from data_modules.base import CIRDataModule
from data_modules.collate import PictureBatch, QueryBatch, TripletBatch, content_id
from data_modules.errors import UserError
from data_modules.records import Benchmark, EvaluationSet, Picture, Query, Triplet

NAMES = [f"p{number}" for number in range(20)]
QUERIES = tuple(Query(f"q{n}", f"p{n}", f"caption {n}", (f"p{n + 1}",), (f"p{n}", f"p{n + 1}", "p19")) for n in range(5))
SMALL = EvaluationSet("small", QUERIES[:2], (*tuple(NAMES[:10]), "p19"))
LARGE = EvaluationSet("large", QUERIES, tuple(reversed(NAMES)))
BENCHMARK = Benchmark(
    pictures=tuple(Picture(name, Path(name), "twin" if name in ("p2", "p3") else name) for name in NAMES),
    triplets=tuple(Triplet(f"p{n % 6}", f"change {n}", f"p{(n + 1) % 6}", f"group {n % 3}") for n in range(50)),
    val=(SMALL,),
    test=(SMALL, LARGE),
    unpaired=("p11",),
)


class Toy(CIRDataModule):
    """A data set of 20 pictures."""

    def __init__(self, benchmark: Benchmark = BENCHMARK, **options: Any) -> None:
        super().__init__(**options)
        self.given, self.reads = benchmark, 0

    def read(self) -> Benchmark:
        """What was given."""
        self.reads += 1
        return self.given


def stand_in(rank, world):
    """What a data module asks of its trainer: where it is, and how far a resumed epoch has got."""
    progress = SimpleNamespace(current=SimpleNamespace(completed=0))
    return SimpleNamespace(
        global_rank=rank, world_size=world, fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    )


def ready(benchmark: Benchmark = BENCHMARK, **options: Any) -> Toy:
    data = Toy(benchmark, **options)
    data.setup()
    return data


class Recorder(LightningModule):
    """Keeps the batches that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: TripletBatch, batch_idx: int) -> torch.Tensor:
        """Keep."""
        self.seen["train"].append((self.current_epoch, batch))
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep."""
        self.seen["val"].append((dataloader_idx, batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep."""
        self.seen["test"].append((dataloader_idx, batch))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep."""
        self.seen["predict"].append((dataloader_idx, batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any."""
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip


# ---- batches ---------------------------------------------------------------------------------------------------------------------


def test_triplet_batch_holds_positions_captions_and_content():
    data = ready(batch_size=10)
    for batch in data.train_dataloader():
        assert isinstance(batch, TripletBatch)
        assert batch.reference.dtype == batch.target.dtype == batch.content.dtype == torch.int64
        for reference, caption, target, content in zip(*batch[:4], strict=True):
            triplet = data.triplets[int(caption.split()[1])]
            assert data.pictures[reference].name == triplet.reference
            assert data.pictures[target].name == triplet.target
            assert content == content_id(data.pictures[target].content)


def test_content_is_equal_for_twins_only():
    ids = ready().content_ids.tolist()
    assert ids[2] == ids[3]
    assert len(set(ids)) == len(NAMES) - 1
    assert content_id("twin") == 8265013636053846477  # on every machine


def test_evaluation_loaders_cover_the_gallery_and_every_distinct_query_once():
    """The first two queries are asked in both sets."""
    data = ready(eval_batch_size=4)
    names = data.gallery_pictures("test")
    assert names == SMALL.gallery + tuple(name for name in LARGE.gallery if name not in SMALL.gallery)
    pictures, queries = data.test_dataloader()
    seen = list(pictures)
    assert all(isinstance(batch, PictureBatch) for batch in seen)
    assert torch.cat([batch.index for batch in seen]).tolist() == list(range(len(names)))
    assert [data.pictures[at].name for batch in seen for at in batch.picture] == list(names)
    asked = list(queries)
    assert all(isinstance(batch, QueryBatch) for batch in asked)
    assert torch.cat([batch.index for batch in asked]).tolist() == list(range(5))
    assert [caption for batch in asked for caption in batch.captions] == [q.caption for q in QUERIES]
    assert [data.pictures[at].name for batch in asked for at in batch.reference] == [q.reference for q in QUERIES]
    assert data.distinct_queries("test") == {(q.reference, q.caption): at for at, q in enumerate(QUERIES)}


def test_a_secret_test_split_is_predicted_and_val_is_scored():
    secret = replace(SMALL, queries=tuple(replace(query, targets=(), members=(), caption="") for query in QUERIES[:1]))
    data = ready(replace(BENCHMARK, test=(), hidden=(secret,)))
    assert data.evaluation_sets("test") == data.evaluation_sets("val") == BENCHMARK.val
    assert data.evaluation_sets("predict") == (secret,)
    assert (data.scored("test"), data.scored("val")) == ("val", "val")
    assert len(list(data.predict_dataloader()[1])) == 1
    known = ready()
    assert known.evaluation_sets("predict") == known.evaluation_sets("test") == BENCHMARK.test
    assert known.scored("test") == "test"


def test_wordings_are_drawn_anew_in_every_epoch():
    worded = replace(BENCHMARK.triplets[0], wordings=("one", "two", "three"))
    data = ready(replace(BENCHMARK, triplets=(worded, *BENCHMARK.triplets[1:])), batch_size=len(BENCHMARK.triplets))
    loader = data.train_dataloader()
    said = set()
    for epoch in range(20):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        (batch,) = loader
        said |= set(batch.captions)
    assert said == {"one", "two", "three", *(triplet.caption for triplet in BENCHMARK.triplets[1:])}


def test_batches_are_equal_on_any_number_of_processes():
    alone = [list(loader) for loader in ready(eval_batch_size=4).val_dataloader()]
    for world in (2, 3):
        dealt: list[list[Any]] = [[], []]
        for rank in range(world):
            data = ready(eval_batch_size=4)
            data.trainer = stand_in(rank, world)  # type: ignore[assignment]
            for kind, loader in enumerate(data.val_dataloader()):
                dealt[kind] += list(loader)
        for kind in (0, 1):
            assert {str(batch) for batch in dealt[kind]} == {str(batch) for batch in alone[kind]}


def test_two_processes_train_on_the_global_batch_of_one():
    alone = list(ready(batch_size=16).train_dataloader())
    halves = []
    for rank in (0, 1):
        data = ready(batch_size=8)
        data.trainer = stand_in(rank, 2)  # type: ignore[assignment]
        halves.append(list(data.train_dataloader()))
    for one, first, second in zip(alone, *halves, strict=True):
        assert one.captions == first.captions + second.captions
        assert torch.equal(one.target, torch.cat([first.target, second.target]))


def test_worker_processes_give_the_same_batches():
    alone, workers = (list(ready(batch_size=16, num_workers=n).train_dataloader()) for n in (0, 1))
    assert [str(batch) for batch in alone] == [str(batch) for batch in workers]


def test_train_pictures_are_those_of_the_triplets_and_the_unpaired():
    assert ready().train_pictures() == [0, 1, 2, 3, 4, 5, 11]


# ---- in Lightning ----------------------------------------------------------------------------------------------------------------


def test_lightning_reaches_the_epoch_and_both_loaders(tmp_path: Path):
    module, data = Recorder(), Toy(batch_size=16, eval_batch_size=4)
    trainer(tmp_path).fit(module, data)
    epochs = [[str(batch) for at, batch in module.seen["train"] if at == epoch] for epoch in range(3)]
    assert [len(epoch) for epoch in epochs] == [3, 3, 3]
    assert epochs[0] != epochs[1] != epochs[2]
    sampler = data.train_dataloader().batch_sampler
    for epoch in range(3):
        sampler.set_epoch(epoch)  # type: ignore[union-attr]
        collate = data.train_dataloader().collate_fn
        assert epochs[epoch] == [str(collate(numbers)) for numbers in sampler]
    assert [at for at, _ in module.seen["val"]] == [0, 0, 0, 1] * 3
    assert data.reads == 1


@pytest.mark.filterwarnings("ignore:You are using a custom batch sampler")
def test_lightning_tests_and_predicts_everything(tmp_path: Path):
    module, data = Recorder(), Toy(eval_batch_size=4)
    trainer(tmp_path).test(module, data, verbose=False)
    trainer(tmp_path).predict(module, data)
    assert str(module.seen["test"]) == str(module.seen["predict"])
    assert [at for at, _ in module.seen["test"]] == [0] * 5 + [1] * 2
    assert data.reads == 1


def test_lightning_trains_without_a_validation_split(tmp_path: Path):
    module = Recorder()
    trainer(tmp_path).fit(module, Toy(replace(BENCHMARK, val=()), batch_size=16))
    assert module.seen["train"]
    assert not module.seen["val"]


@pytest.mark.parametrize(("stage", "split"), [("validate", "val"), ("test", "test"), ("predict", "test")])
def test_a_stage_without_queries_is_refused(stage: str, split: str):
    """Lightning would do nothing and call it a success."""
    with pytest.raises(UserError, match=f"Toy has no queries in its {split} split; hold some out, or ask for another split"):
        Toy(replace(BENCHMARK, val=(), test=())).setup(stage)


def test_a_val_split_without_queries_is_not_predicted():
    toy = Toy(replace(BENCHMARK, val=()))
    toy.predicts = "val"
    with pytest.raises(UserError, match="Toy has no queries in its val split"):
        toy.setup("predict")


# ---- what is refused -------------------------------------------------------------------------------------------------------------


def change_query(**changes: Any) -> Benchmark:
    return replace(BENCHMARK, val=(replace(SMALL, queries=(QUERIES[0], replace(QUERIES[1], **changes))),))


def change_triplet(**changes: Any) -> Benchmark:
    return replace(BENCHMARK, triplets=(BENCHMARK.triplets[0], replace(BENCHMARK.triplets[1], **changes)))


LONG = " ".join(f"word{n}" for n in range(61))
WRONG = [
    (change_triplet(caption="  "), r"empty caption in training triplet 1 \('p1' to 'p2'\); write one, or leave the record out"),
    (change_triplet(caption=LONG), r'caption "word0 word1 .* word7 ..." in training triplet 1 .* has 61 words, the limit is 60'),
    (change_triplet(caption=LONG), r"set --data\.max_caption_words 61"),
    (change_triplet(target="nobody"), r"training triplet 1 names 'nobody', which is not a picture of the data set"),
    (change_query(caption=""), r"empty caption in query 'q1' of val/small"),
    (change_query(caption=LONG), r"in query 'q1' of val/small has 61 words"),
    (change_query(id="q0"), r"query id of val/small 'q0' is not unique"),
    (change_query(reference="nobody"), r"query 'q1' of val/small names 'nobody'"),
    (change_query(targets=()), r"query 'q1' of val/small has no target, so it cannot be scored"),
    (replace(BENCHMARK, hidden=(SMALL,)), r"query 'q0' of hidden/small has a target, but its answer is a server's secret"),
    (change_query(targets=("p15",)), r"has the target or member 'p15', which its gallery does not have"),
    (change_query(members=("p1", "p3")), r"has members without its reference or its first target"),
    (replace(BENCHMARK, val=(replace(SMALL, queries=()),)), r"evaluation set val/small has no queries"),
    (replace(BENCHMARK, val=(SMALL, SMALL)), r"name of an evaluation set of val 'small' is not unique"),
    (replace(BENCHMARK, test=(replace(SMALL, gallery=("p0", "p0")),)), r"gallery picture of test/small 'p0' is not unique"),
    (replace(BENCHMARK, test=(replace(SMALL, gallery=("elsewhere",)),)), r"the gallery of test/small names 'elsewhere'"),
    (replace(BENCHMARK, pictures=BENCHMARK.pictures * 2), r"picture name 'p0' is not unique \(20 such values\)"),
    (replace(BENCHMARK, unpaired=("elsewhere",)), r"the list of unpaired pictures names 'elsewhere'"),
]


@pytest.mark.parametrize(("records", "message"), WRONG)
def test_wrong_records_are_refused_with_their_place(records: Benchmark, message: str):
    with pytest.raises(UserError, match=message):
        ready(records)


def test_caption_of_the_limit_is_fine():
    assert ready(change_triplet(caption=LONG), max_caption_words=61).triplets[1].caption == LONG


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size is 0; set --data\.batch_size to 1 or more"),
        ({"eval_batch_size": -1}, r"data\.eval_batch_size is -1"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
        ({"same_group": 1.5}, r"data\.same_group is 1\.5; set --data\.same_group to a share from 0 to 1"),
        ({"max_caption_words": 0}, r"data\.max_caption_words is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        Toy(**options)


def test_batch_of_one_needs_more_processes():
    data = ready(batch_size=1)
    for refused in (data.train_dataloader, lambda: data.setup("fit")):
        with pytest.raises(UserError, match=r"in-batch negatives; set --data\.batch_size 2 or more"):
            refused()
    data.trainer = stand_in(1, 2)  # type: ignore[assignment]
    assert len(data.train_dataloader()) == 25


def test_records_before_setup_name_the_remedy():
    with pytest.raises(RuntimeError, match=r"Toy has no records yet; call prepare_data\(\) and setup\(\) first"):
        _ = Toy().pictures
