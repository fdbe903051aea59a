"""``cir export``: a trained model as a folder for others, on top of a base model that they get by its id."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file

from cir_lightning import __version__
from cir_lightning.api import make_encoder, naming, restore, transform_of
from cir_lightning.exported import ADAPTER, CONFIG, MERGED, MODULES, backbone_arguments, check_base, checksum, to_peft
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
        destination: the folder, which must not exist or be empty.
        merge: merge the adapters into the base model's weights and write those instead of the adapters.

    Returns:
        The folder.

    Raises:
        UserError: there are no such weights, they do not fit the base model that is here, the folder holds something or cannot be written,
            or there is nothing to merge.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise UserError(f"{destination} exists already; name another folder, or remove it")
    path = find_weights(source)
    state, tower, config = read_weights(path)
    if config.get("merged"):
        raise UserError(f"{source} is an export with merged weights, which is whole as it is; copy the folder")
    with naming(source):
        encoder = make_encoder(config)
        check_base(encoder, config, source)
        if merge:
            _refuse_merge(encoder, state)
            restore(encoder, state, tower, source)
        else:
            _check(encoder, tower, source)
    about = _about(encoder, tower, config)

    def fill(folder: Path) -> None:
        written = _merge(encoder, about, folder) if merge else about
        adapters = {name: tensor for name, tensor in state.items() if "lora_" in name and (merge or name.startswith(about["llm"]))}
        modules = {name: tensor.contiguous() for name, tensor in state.items() if name not in adapters}
        save_file(modules, folder / MODULES, {"format": "pt"})
        if adapters and not merge:
            in_peft = {to_peft(name, about["llm"]): tensor.contiguous() for name, tensor in adapters.items()}
            save_file(in_peft, folder / ADAPTER, {"format": "pt"})
            _adapter_config(encoder).save_pretrained(folder)
        written = written | {"checks": {path.name: checksum(path) for path in sorted(folder.glob("*.safetensors"))}}
        (folder / CONFIG).write_text(yaml.safe_dump(written, sort_keys=False, allow_unicode=True), encoding="utf-8")
        (folder / "README.md").write_text(model_card(about, config, path, destination.name, merged=merge), encoding="utf-8")

    return _write_folder(destination, fill)


def merge_adapters(model: nn.Module) -> None:
    """Add every adapter to the weights below it, and take it away."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, part in list(model.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, part.get_base_layer())


def _refuse_merge(encoder: Any, state: dict[str, Tensor]) -> None:
    if not any("lora_" in name for name in state):
        raise UserError("--merge: this model has no adapters to merge; leave it out")
    packed = [checkpoint.quantisation for checkpoint in encoder.base_models().values() if checkpoint.quantisation != "none"]
    if packed:
        raise UserError(
            f"--merge: adapters cannot be merged into {packed[0]} weights; leave it out, set quantisation to none in the {CONFIG} of what "
            "is written, and merge that"
        )


def _merge(encoder: Any, about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the merged base model; the content of ``config.yaml`` that reads it in the place of the base."""
    merge_adapters(encoder.backbone)
    changed = encoder.backbone.save_merged(folder / MERGED)
    model = copy.deepcopy(about["model"])
    arguments = backbone_arguments(model["encoder"])
    arguments |= changed | {name: None for name in ("lora", "vision_lora") if name in arguments}
    merged = make_encoder({"model": model})
    with torch.device("meta"):
        merged.build()
    base = _bases(merged)
    for one in base.values():
        one["model"] = one["model"].replace(f"{folder}/", "")
    places = [option for option, place in changed.items() if place]
    arguments |= dict.fromkeys(places, MERGED)
    return about | {"tower": merged.tower.key, "base": base, "merged": places, "model": model}


def _check(encoder: Encoder, tower: str, source: str) -> None:
    """Refuse another base model than that of the run; the model is built without reading the base's weights."""
    encoder.restored = True
    with torch.device("meta"):
        encoder.build()
    if tower != encoder.tower.key:
        raise UserError(f"{source}: the weights were trained on the vision tower {tower!r}, but what is here is {encoder.tower.key!r}")


def _about(encoder: Any, tower: str, config: dict[str, Any]) -> dict[str, Any]:
    """The content of ``config.yaml``."""
    model = copy.deepcopy(config["model"]["encoder"])
    base = _bases(encoder)
    for option, checkpoint in encoder.base_models().items():
        if pinned := base[option]["commit"] or checkpoint.revision:
            backbone_arguments(model)[option] = pinned
    connector = getattr(encoder, "connector", None)
    if connector is not None and connector.starts_from:
        model["init_args"]["connector"].setdefault("init_args", {})[connector.starts_from] = None
    data = {"class_path": config["data"]["class_path"], "init_args": {"transform": transform_of(config)}}
    llm = getattr(getattr(encoder, "backbone", None), "llm", None)
    where = next((f"encoder.{name}." for name, part in encoder.named_modules() if part is llm), "")
    about = {"cir_lightning": __version__, "tower": tower, "llm": where, "base": base, "merged": []}
    return about | {"model": {"encoder": model}, "data": data}


def _bases(encoder: Encoder) -> dict[str, dict[str, Any]]:
    """Id or folder, commit and key of every base model, by the argument that is its revision."""
    models = encoder.base_models().items()
    return {option: {"model": one.name, "commit": one.commit(), "key": one.key()} for option, one in models}


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
    except (OSError, SafetensorError) as error:
        what, why = getattr(error, "filename", None) or destination, getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {what}: {why}; make room, or name another folder") from error
    return destination
