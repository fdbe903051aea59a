"""The recipe, and the recipe with each overlay: parsed, measured and let go of, one after the other."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import seed_everything

from cir_lightning.bench.measure import Bencher, evaluation_sizes
from cir_lightning.bench.results import Arm
from cir_lightning.chunks import give_memory_back
from cir_lightning.lightning_cli import CIRCLI, Parsed, run
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn


class Recipe(NamedTuple):
    """What is going to be measured.

    Attributes:
        arm: its name and configuration; takes the figures.
        cli: module, data module and arguments of the trainer.
    """

    arm: Arm
    cli: Any


class Seeded(Parsed):
    """Refuses a number that is no seed, too."""

    def _set_seed(self) -> None:
        CIRCLI._set_seed(self)


def parse(options: list[str], overlay: str) -> Recipe | None:
    """A recipe from the options of ``cir fit`` with another overlay on it; None where only help or the configuration was asked for.

    Raises:
        UserError: an option is wrong.
    """
    words = [*options, *(["--config", overlay] if overlay else [])]
    cli = run(["fit", *words], Seeded)
    if cli is None:
        return None
    settings: Any = cli.config.fit
    configs = [value for word, value in zip(words, [*words[1:], ""], strict=True) if word in {"--config", "-c"}]
    configs += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    arm = Arm(
        " + ".join(configs),
        precision=str(settings.trainer.precision or "32-true"),
        seed=int(settings.seed_everything),
        config=cli._parser("fit").dump(settings, skip_unset=False),
        batches={"training": cli.datamodule.batch_size, "evaluation": cli.datamodule.eval_batch_size},
    )
    return Recipe(arm, cli)


def measure(recipe: Recipe, batches: Sequence[int], rounds: int, traces: Path | None) -> Arm:
    """Measure one; what makes it impossible is said in it."""
    arm, cli = recipe
    module, data, seed = cli.model, cli.datamodule, arm.seed

    def say(what: str) -> None:
        print(f"{arm.name}: {what}", file=sys.stderr, flush=True)

    seed_everything(seed, verbose=False)
    try:
        bencher = Bencher(module, data, cli.config.fit.trainer, rounds=rounds, say=say, traces=traces)
        arm.device = str(bencher.device)
        arm.works = bencher.run(batches)
        arm.label, arm.sizes = module.encoder.label, {**evaluation_sizes(data), "width": module.encoder.width}
        arm.parameters = _parameters(module)
        arm.traces = [str(file) for file in bencher.traced]
    except (UserError, ImportError) as error:
        arm.refused = str(error)
        say(f"not measured: {error}")
    del recipe, cli, module, data
    gc.collect()
    give_memory_back()
    torch.cuda.empty_cache()
    return arm


def _parameters(module: Any) -> dict[str, int]:
    encoder = module.encoder
    llm: nn.Module = getattr(encoder.backbone, "llm", None) or encoder.backbone["text"]
    everything = list(module.parameters())
    return {
        "language model": sum(p.numel() for p in llm.parameters()),
        "all": sum(p.numel() for p in everything),
        "trained": sum(p.numel() for p in everything if p.requires_grad),
    }
