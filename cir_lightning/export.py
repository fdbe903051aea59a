"""``cir export``: a trained model as a folder for others, on top of a base model that they get by its id."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors.torch import save_file

from cir_lightning import __version__
from cir_lightning.api import make_encoder, restore
from cir_lightning.exported import ADAPTER, CONFIG, LLM, MODULES, to_peft
from cir_lightning.model_card import model_card
from cir_lightning.weights import find_weights, read_weights
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from cir_lightning.encoder import Encoder


def export(source: str, destination: Path, *, merge: bool = False) -> Path:
    """Write the folder that :mod:`cir_lightning.exported` describes, whole or not at all.

    Args:
        source: a run folder, a checkpoint file or the name of packaged weights.
        destination: the folder, which must not exist.
        merge: write the LLM with the adapters merged into its weights, instead of the adapters.

    Returns:
        The folder.

    Raises:
        UserError: there are no such weights, they do not fit the base model that is here, the folder exists or cannot be written, or there
            is nothing to merge.
    """
    if destination.exists():
        raise UserError(f"{destination} exists already; name another folder, or remove it")
    path = find_weights(source)
    state, tower, config = read_weights(path)
    encoder = make_encoder(config)
    adapters = {name: tensor for name, tensor in state.items() if "lora_" in name}
    if merge:
        _refuse_merge(encoder, adapters)
        restore(encoder, state, tower, source)
    else:
        _check(encoder, tower, source)
    about = _about(encoder, tower, config, merged=merge)

    def fill(folder: Path) -> None:
        modules = {name: tensor.contiguous() for name, tensor in state.items() if name not in adapters}
        save_file(modules, folder / MODULES, {"format": "pt"})
        if merge:
            merge_adapters(encoder.backbone.llm)  # type: ignore[union-attr,arg-type]
            encoder.backbone.llm.save_pretrained(folder / LLM)  # type: ignore[union-attr,operator]
        elif adapters:
            in_peft = {to_peft(name, about["llm"]): tensor.contiguous() for name, tensor in adapters.items()}
            save_file(in_peft, folder / ADAPTER, {"format": "pt"})
            _adapter_config(encoder).save_pretrained(folder)
        (folder / CONFIG).write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), encoding="utf-8")
        (folder / "README.md").write_text(model_card(about, config, path, destination.name), encoding="utf-8")

    return _write_folder(destination, fill)


def merge_adapters(llm: nn.Module) -> None:
    """Add every adapter to the weights below it, and take it away."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, part in list(llm.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            parent, _, child = name.rpartition(".")
            setattr(llm.get_submodule(parent), child, part.get_base_layer())


def _refuse_merge(encoder: Any, adapters: dict[str, Tensor]) -> None:
    if not adapters:
        raise UserError("--merge: this model has no adapters to merge; leave it out")
    packed = [checkpoint.quantisation for checkpoint in encoder.base_models().values() if checkpoint.quantisation != "none"]
    if packed:
        raise UserError(f"--merge: the adapters were trained over {packed[0]} weights, into which they cannot be merged; leave it out")


def _check(encoder: Encoder, tower: str, source: str) -> None:
    """Refuse another base model than that of the run; the model is built without reading the base's weights."""
    with torch.device("meta"):
        encoder.build()
    if tower != encoder.tower.key:
        raise UserError(f"{source}: the weights were trained on the vision tower {tower!r}, but what is here is {encoder.tower.key!r}")


def _about(encoder: Any, tower: str, config: dict[str, Any], *, merged: bool) -> dict[str, Any]:
    """The content of ``config.yaml``."""
    model = yaml.safe_load(yaml.safe_dump(config["model"]["encoder"]))
    base = {}
    for option, checkpoint in encoder.base_models().items():
        base[option] = {"model": checkpoint.name, "commit": checkpoint.commit(), "key": checkpoint.key()}
        if pinned := checkpoint.commit() or checkpoint.revision:
            model["init_args"]["backbone"]["init_args"][option] = pinned
    if merged:
        model["init_args"]["backbone"]["init_args"]["lora"] = None
    data = {"class_path": config["data"]["class_path"], "init_args": {"transform": transform_of(config)}}
    llm = getattr(getattr(encoder, "backbone", None), "llm", None)
    where = next((f"encoder.{name}." for name, part in encoder.named_modules() if part is llm), "")
    return {"cir_lightning": __version__, "tower": tower, "llm": where, "base": base, "model": {"encoder": model}, "data": data}


def transform_of(config: dict[str, Any]) -> str:
    """How pictures become squares."""
    return str(config["data"].get("init_args", {}).get("transform", "letterbox"))


def _adapter_config(encoder: Any) -> Any:
    """PEFT's own, for :class:`peft.PeftModel` over the LLM without its head."""
    config = encoder.backbone.lora.config()
    base = list(encoder.base_models().values())
    if base:  # of a composed model, the LLM is the last one
        config.base_model_name_or_path, config.revision = base[-1].name, base[-1].commit()
    config.task_type, config.inference_mode = "FEATURE_EXTRACTION", True
    return config


def _write_folder(destination: Path, fill: Callable[[Path], None]) -> Path:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        try:
            fill(part)
            part.chmod(0o755)
            part.rename(destination)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or destination}: {error.strerror}; name another folder") from error
    return destination
