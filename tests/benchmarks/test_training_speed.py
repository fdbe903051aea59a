"""A training step and an evaluation of the mini LVLM on EmojiCIR beside the plain way: ``make bench``.

The plain way, with the same modules and batches: pictures are read and encoded whenever they are wanted, as often as they occur, and
sequences are padded to the longest.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from cir_lightning.backbones import base
from cir_lightning.compiling import compile_parts
from cir_lightning.lightning_cli import Parsed, run
from cir_lightning.retrieval.ranking import rank_all
from data_modules.collate import PictureBatch, distinct
from data_modules.pixels import PixelReader

ROUNDS = 5


def made():
    """Module, data module, six training batches and an optimizer; the features of all pictures are in the cache."""
    cli = run(["fit", "--config", "emoji.yaml"], Parsed)
    module, data = cli.model, cli.datamodule
    data.prepare_data()
    data.setup("fit")
    module.configure_model()
    module._trainer = SimpleNamespace(datamodule=data)
    needed = sorted({*data.train_pictures(), *data.evaluation_pictures("test")})
    module._see(needed)
    module.encoder.standardise.fit(module.features_of(torch.tensor(data.train_pictures())))
    module.log_dict = module.log = lambda *_, **__: None
    data.trainer = None
    batches = iter(data.train_dataloader())
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-4, fused=True)
    return SimpleNamespace(module=module.train(), data=data, batches=[next(batches) for _ in range(ROUNDS + 1)], optimizer=optimizer)


@pytest.fixture(scope="module")
def mini():
    return made()


def optimise(mini, loss):
    mini.optimizer.zero_grad()
    loss.backward()
    mini.optimizer.step()


def step(mini, batch):
    optimise(mini, mini.module.training_step(batch, 0))


def plain_sight(module, pictures):
    encoder = module.encoder
    read = PixelReader(module.data.pictures, encoder.tower.image_size, module.data.transform)
    return encoder.see(torch.cat([encoder.tower(read(part)) for part in pictures.split(8)]))


def plain_step(mini, batch):
    encoder = mini.module.encoder
    reference, target = (plain_sight(mini.module, pictures) for pictures in (batch.reference, batch.target))
    contrast = mini.module.loss(encoder.encode_query(reference, batch.captions), encoder.encode_target(target), batch.content)
    optimise(mini, contrast + torch.cat([reference.pull, target.pull]).mean())


WAYS = {
    "plain": (plain_step, "32", False),
    "ours": (step, "32", False),
    "ours-bf16": (step, "bf16", False),
    "ours-compiled": (step, "32", True),
    "ours-bf16-compiled": (step, "bf16", True),
}


@pytest.mark.parametrize("way", WAYS)
def test_training_step(way, mini, benchmark, monkeypatch):
    run_step, precision, compiled = WAYS[way]
    if way == "plain":
        monkeypatch.setattr(base, "WORTH", 2)  # never packed
    mini = made() if compiled else mini
    if compiled:
        compile_parts(mini.module.encoder)
    batches = iter(mini.batches)
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        for batch in mini.batches[:2] if compiled else ():  # two lengths are compiled
            step(mini, batch)
        benchmark.pedantic(lambda: run_step(mini, next(batches)), rounds=ROUNDS, warmup_rounds=1)


def test_vision_of_a_warm_step(mini, benchmark):
    """What is left of the vision tower once every picture went through it: its features of a batch are read."""
    pictures = distinct(mini.batches[0].reference, mini.batches[0].target)[0]
    benchmark.pedantic(lambda: mini.module.features_of(pictures), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("way", ["gallery", "bare-llm"])
def test_gallery(way, mini, benchmark):
    """Encoding all gallery pictures, and nothing but the LLM on as many tokens."""
    module, encoder = mini.module.eval(), mini.module.encoder
    batches = list(mini.data.test_dataloader()[0])
    seen, llm = [], encoder.backbone.llm
    hook = llm.register_forward_pre_hook(lambda _, __, given: seen.append(given["inputs_embeds"].clone()), with_kwargs=True)
    with torch.inference_mode():
        for batch in batches:
            encoder.encode_target(module.see(batch.picture))
        hook.remove()
        if way == "gallery":
            work = lambda: [encoder.encode_target(module.see(batch.picture)) for batch in batches]  # noqa: E731
        else:
            work = lambda: [llm(inputs_embeds=embeds, use_cache=False) for embeds in seen]  # noqa: E731
        benchmark.pedantic(work, rounds=ROUNDS, warmup_rounds=1)


def evaluated(mini):
    """Tables of all test pictures and queries."""
    mini.module._start_evaluation("test")
    for loader in mini.data.test_dataloader():
        for batch in loader:
            mini.module._evaluation_step(batch)
    return [table.compute() for table in mini.module.tables]


def plainly_evaluated(mini):
    encoder, tables = mini.module.encoder, []
    for loader in mini.data.test_dataloader():
        for batch in loader:
            if isinstance(batch, PictureBatch):
                tables.append(encoder.encode_target(plain_sight(mini.module, batch.picture)))
            else:
                tables.append(encoder.encode_query(plain_sight(mini.module, batch.reference), batch.captions))
    return tables


@pytest.mark.parametrize("way", ["plain", "ours", "ours-bf16", "ranking"])
def test_evaluation(way, mini, benchmark, monkeypatch):
    mini.module.eval()
    if way == "plain":
        monkeypatch.setattr(base, "WORTH", 2)
    if way == "ranking":
        pictures, queries = evaluated(mini)
        sets, place = mini.data.evaluation_sets("test"), mini.data.distinct_queries("test")
        rows = [torch.tensor([place[query.reference, query.caption] for query in one.queries]) for one in sets]
        names = mini.data.gallery_pictures("test")
        work = lambda _: rank_all(queries, pictures, sets, rows=rows, names=names, top=50)  # noqa: E731
    else:
        work = plainly_evaluated if way == "plain" else evaluated
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if way == "ours-bf16" else nullcontext():
        benchmark.pedantic(lambda: work(mini), rounds=3, warmup_rounds=1)
