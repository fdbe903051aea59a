"""``cir cache build``: patch features of a whole benchmark, before anything is trained."""

from __future__ import annotations

import torch

from cir_lightning.cache import FeatureCache
from cir_lightning.lightning_cli import Parsed, run
from data_modules.errors import UserError

SPLITS = ("val", "test", "predict")


def build(argv: list[str], device: str | None) -> None:
    """Send every picture through the vision tower of a recipe, and through what gives its native visual tokens.

    Args:
        argv: options of ``cir fit``.
        device: where the tower runs; None for a GPU if there is one.

    Raises:
        UserError: an option is wrong, the tower is trained, so that its features change, or see :meth:`FeatureCache.open`.
    """
    place = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cli = run(["fit", *argv], Parsed)
    if cli is None:
        return
    module, data = cli.model, cli.datamodule
    data.prepare_data()
    data.setup("fit")
    positions = sorted({*data.train_pictures(), *(at for split in SPLITS for at in data.evaluation_pictures(split))})
    data.require_pictures(positions)
    pictures = [data.pictures[at] for at in positions]
    module.configure_model()
    module.to(place)
    for tower in (module.encoder.tower, module.encoder.vision):
        if tower is not None:
            cache = FeatureCache(tower, data.transform)
            cache.open(pictures)
            print(f"{len(pictures):,} pictures of {data.recipe} are in {cache.folder}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not there ({' '.join(str(error).split())[:100]}); use cpu, or cuda:0 and so on") from error
    return device
