"""``cir analyze prompts``: which pictures, edits and roles choose which prompt of the pool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from cir_lightning.analysis import prompts_page
from cir_lightning.api import restore
from cir_lightning.cache import FeatureCache
from cir_lightning.callbacks import results_folder
from cir_lightning.encoder import IntentEncoder
from cir_lightning.lightning_cli import Parsed, run
from cir_lightning.prompt_pool import PromptPool
from cir_lightning.results import source_commit
from cir_lightning.weights import find_weights, read_weights
from data_modules.errors import UserError
from data_modules.pixels import PixelReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from data_modules.base import CIRDataModule, Split

BATCH = 64  # pictures


class Findings(NamedTuple):
    """All that the page is made of.

    Attributes:
        pool: with trained prompts.
        pictures: positions of the gallery's pictures in ``data.pictures``.
        asked: (P, D) float, unit vectors that they look for among the keys.
        chosen: (P, K) long, the prompts that they choose.
        queries: place in ``pictures`` of each query's reference.
        known: of each query, property -> values.
        embeddings: (W, D) float, of the LLM's words, around zero.
        words: W.
        training: step -> name of a figure of TensorBoard's log -> value.
    """

    pool: PromptPool
    pictures: list[int]
    asked: Tensor
    chosen: Tensor
    queries: list[int]
    known: list[dict[str, tuple[str, ...]]]
    embeddings: Tensor
    words: list[str]
    training: dict[int, dict[str, float]]


def analyze(argv: Sequence[str], split: Split) -> None:
    """Write the analysis of a checkpoint.

    Args:
        argv: options of ``cir test``.
        split: whose gallery and queries are looked at.

    Raises:
        UserError: the model has no pool, there is no checkpoint, or a picture is missing.
    """
    cli = run(["test", *argv], Parsed)
    if cli is None:
        return
    config = cli.config["test"]
    name = config.ckpt_path or config.model.init_from
    encoder, data = cli.model.encoder, cli.datamodule
    soft = getattr(encoder, "soft_prompt", None)
    if not name:
        raise UserError("cir analyze prompts needs trained weights; give --ckpt_path runs/NAME, or --model.init_from")
    if not isinstance(encoder, IntentEncoder) or not isinstance(soft, PromptPool):
        what = type(soft).__name__ if soft is not None else type(encoder).__name__
        raise UserError(f"{name} has no prompt pool to analyse but {what}; give a run that was trained with a PromptPool")
    weights = find_weights(str(name))
    state, tower, _ = read_weights(weights)
    restore(encoder, state, tower, str(name))
    data.prepare_data()
    data.setup("test")
    folder = results_folder(Path(config.trainer.default_root_dir or "runs"), config.ckpt_path, config.model.init_from)
    findings = look(encoder, soft, data, split, weights.parent.parent)
    scored = data.scored(split)
    about = [f"{type(data).__name__}, {scored}; {weights}; commit {source_commit() or 'unknown'}; seed {data.seed}."]
    files = prompts_page.write(findings, data.pictures, about, folder / "analysis" / f"prompts-{scored}")
    print(f"prompts: {files[0]}; beside it {', '.join(path.name for path in files[1:])}")


@torch.inference_mode()
def look(encoder: IntentEncoder, pool: PromptPool, data: CIRDataModule, split: Split, folder: Path) -> Findings:
    """Ask every picture of a split which prompts it chooses."""
    encoder.eval()
    positions = data.evaluation_pictures(split)
    data.require_pictures(positions)
    place = {position: at for at, position in enumerate(positions)}
    features, asked, chosen = _features(encoder, data, place), [], []
    for start in range(0, len(positions), BATCH):
        x = encoder.standardise(features(positions[start : start + BATCH]))
        asked.append(pool.ask(x))
        chosen.append(pool(x).chosen)
    every = (query for evaluation in data.evaluation_sets(split) for query in evaluation.queries)
    queries = list({(query.reference, query.caption, query.targets): query for query in every}.values())  # protocols share theirs
    embeddings, words = _vocabulary(encoder)
    return Findings(
        pool=pool,
        pictures=positions,
        asked=torch.cat(asked).float(),
        chosen=torch.cat(chosen),
        queries=[place[data.picture_index[query.reference]] for query in queries],
        known=[data.describe(query) for query in queries],
        embeddings=embeddings,
        words=words,
        training=read_training(folder / "tensorboard"),
    )


def _features(encoder: IntentEncoder, data: CIRDataModule, place: dict[int, int]) -> Callable[[list[int]], Tensor]:
    """Gives the patch features of some of these pictures: of the cache, or of a trained tower."""
    tower = encoder.tower
    if tower.trained:
        reader = PixelReader(data.pictures, tower.image_size, data.transform)
        return lambda some: tower.look(reader(torch.tensor(some)).to(tower.device))
    cache = FeatureCache(tower, data.transform).open([data.pictures[at] for at in place])
    return lambda some: cache[torch.tensor([place[at] for at in some])].to(tower.device)


def _vocabulary(encoder: IntentEncoder) -> tuple[Tensor, list[str]]:
    """Embeddings of the words that say something: tokens that are read back as text."""
    tokenizer, embed = encoder.backbone.tokenizer, encoder.backbone.llm.get_input_embeddings()
    count = min(len(tokenizer), int(embed.num_embeddings))  # type: ignore[arg-type]
    words = [" ".join(str(tokenizer.decode([number])).split()) for number in range(count)]
    kept = [number for number, word in enumerate(words) if word.isalpha() and len(word) > 1]
    return embed(torch.tensor(kept)).float() - encoder.word_mean, [words[number] for number in kept]


def read_training(folder: Path) -> dict[int, dict[str, float]]:
    """How evenly prompts were chosen in training, from TensorBoard's log; empty if there is none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for name in sorted({"prompts/entropy", "prompts/unused"} & set(events.Tags()["scalars"])):
        for event in events.Scalars(name):
            found.setdefault(event.step, {})[name] = event.value
    return dict(sorted(found.items()))
