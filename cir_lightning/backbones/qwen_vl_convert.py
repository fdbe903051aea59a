"""``cir convert qwen-vl-chat SRC DST``: the published checkpoint -> the folder that :class:`QwenVLChat` reads.

DST gets ``llm/`` (config, shards with an index, fast tokenizer: a folder that ``transformers.Qwen2ForCausalLM`` loads),
``vision.safetensors``, ``connector.safetensors`` and, last of all, ``config.json`` with sizes, source and checksums. Tensors keep their
dtype. Loading does not compute checksums again, since that would read 19 GB once more in every process of every start: a shortened file or
one of other tensors is refused there, and ``cir convert qwen-vl-chat --verify DST`` finds a single changed bit. The real weights are unrun:
a checkpoint of the published names, shapes and shards, full of zeros, was converted in 106 s on 2 cores at a peak of 2.5 GB of resident
memory, 2.0 GB of it one mapped source file.

Source: config, tensor names and index of Qwen/Qwen-VL-Chat (853 tensors, 19,313,870,336 bytes); in its MLP ``w2`` is the gate.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from cir_lightning.backbones import qwen_vl
from cir_lightning.backbones.qwen_tokenizer import SPECIAL, fast_tokenizer, read_vocabulary
from cir_lightning.backbones.qwen_vl import CONFIG, CONNECTOR, FORMAT, LLM, VISION, QwenResampler, QwenViT, VisionSizes, read_converted
from cir_lightning.convert import (
    PROGRESS,
    Piece,
    Source,
    byte_size,
    check_source,
    check_written,
    checksum,
    read_record,
    write_json,
    write_tensors,
)
from data_modules.errors import UserError
from data_modules.folders import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from transformers import Qwen2Config

    Plan = dict[str, dict[str, Piece]]  # file -> name in it -> where it comes from

SHARD = 2_000_000_000  # bytes of a file of the LLM
QUERIES = 256
VOCABULARY = "qwen.tiktoken"
FIXED = {"no_bias": True, "rotary_pct": 1.0, "tie_word_embeddings": False, "scale_attn_weights": True}  # what Qwen2 cannot do otherwise
WHOLE = (
    "num_attention_heads",
    "hidden_size",
    "kv_channels",
    "vocab_size",
    "intermediate_size",
    "num_hidden_layers",
    "max_position_embeddings",
)
REAL = ("layer_norm_epsilon", "rotary_emb_base")
VISUAL_WHOLE = tuple(f"visual.{key}" for key in ("width", "layers", "heads", "patch_size", "output_dim", "n_queries", "image_start_id"))
VISUAL_REAL = ("visual.mlp_ratio",)
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
LAYER_NAMES = {
    "self_attn.q_proj": ("attn.c_attn", 0, 3),
    "self_attn.k_proj": ("attn.c_attn", 1, 3),
    "self_attn.v_proj": ("attn.c_attn", 2, 3),
    "self_attn.o_proj": ("attn.c_proj", 0, 1),
    "mlp.gate_proj": ("mlp.w2", 0, 1),
    "mlp.up_proj": ("mlp.w1", 0, 1),
    "mlp.down_proj": ("mlp.c_proj", 0, 1),
    "input_layernorm": ("ln_1", 0, 1),
    "post_attention_layernorm": ("ln_2", 0, 1),
}
OTHER_NAMES = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "lm_head.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class Settings:
    """What the published ``config.json`` says.

    Attributes:
        llm: the LLM as a Qwen2.
        vision: sizes of the ViT.
        queries: of the resampler.
        image_start: id of ``<img>``.
    """

    llm: Qwen2Config
    vision: VisionSizes
    queries: int
    image_start: int


def read_settings(folder: Path) -> Settings:
    """Read and check the published ``config.json``.

    Raises:
        UserError: the file is missing, lacks a key, or is of a model that is built in another way.
    """
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text())
        wrong = [f"{key}={config[key]}" for key, value in FIXED.items() if config.get(key, value) != value]
        _check_numbers(file, config, WHOLE, REAL)
        visual = {"n_queries": QUERIES} | config["visual"]
        _check_numbers(file, {f"visual.{key}": value for key, value in visual.items()}, VISUAL_WHOLE, VISUAL_REAL)
        wrong += _misfits(config, visual)
        keys = {key: visual[key] for key in ("width", "layers", "heads", "patch_size")}
        vision = VisionSizes(**keys, mlp_width=int(visual["width"] * visual["mlp_ratio"]))
        settings = Settings(_as_qwen2(config), vision, visual["n_queries"], visual["image_start_id"])
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; give the folder into which Qwen/Qwen-VL-Chat was downloaded") from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no config of Qwen-VL-Chat ({error!r}); give the folder into which it was downloaded") from error
    if wrong:
        raise UserError(f"{file}: {', '.join(wrong)} is not as in Qwen-VL-Chat, and only that model is converted; use its own checkpoint")
    return settings


def _check_numbers(file: Path, config: Mapping[str, Any], whole: tuple[str, ...], real: tuple[str, ...]) -> None:
    for key in (*whole, *real):
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{file}: {key} is {value!r}, no number; get it again")
        if key in whole and not isinstance(value, int):
            raise UserError(f"{file}: {key} is {value!r}, no whole number; get it again")
        if value <= 0:
            raise UserError(f"{file}: {key} is {value!r}, not above 0; get it again")


def _misfits(config: Mapping[str, Any], visual: Mapping[str, Any]) -> list[str]:
    """What another size contradicts."""
    width = config["hidden_size"]
    checks = {
        f"kv_channels={config['kv_channels']}": config["kv_channels"] * config["num_attention_heads"] == width,
        f"visual.output_dim={visual['output_dim']}": visual["output_dim"] == width != visual["width"],
        f"visual.heads={visual['heads']}": visual["width"] % visual["heads"] == 0,
        f"visual.n_queries={visual['n_queries']}": math.isqrt(visual["n_queries"]) ** 2 == visual["n_queries"],
    }
    return [what for what, fits in checks.items() if not fits]


def _as_qwen2(config: Mapping[str, Any]) -> Qwen2Config:
    from transformers import Qwen2Config

    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"] // 2,  # Qwen counts gate and value together
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_attention_heads"],
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])},
        tie_word_embeddings=False,
    )


def layout(settings: Settings) -> dict[str, dict[str, Piece]]:
    """Where every tensor of the three parts comes from; names and shapes are those of the modules that read them, on ``meta``.

    Returns:
        Of ``llm``, ``vision.safetensors`` and ``connector.safetensors``: name -> piece.
    """
    from transformers import Qwen2ForCausalLM

    with torch.device("meta"):
        llm, vision, connector = Qwen2ForCausalLM(settings.llm), QwenViT(settings.vision), QwenResampler(queries=settings.queries)
        connector.build(settings.vision.width, qwen_vl.POSITIONS, settings.llm.hidden_size)
    parts = {LLM: (llm, _llm_piece), VISION: (vision, _vision_piece), CONNECTOR: (connector, _connector_piece)}
    return {
        part: {name: piece(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
        for part, (module, piece) in parts.items()
    }


def _llm_piece(name: str, shape: tuple[int, ...]) -> Piece:
    if name in OTHER_NAMES:
        return Piece(shape, OTHER_NAMES[name])
    match = LAYER.fullmatch(name)
    assert match is not None, name
    layer, role, kind = match.groups()
    source, part, parts = LAYER_NAMES[role]
    return Piece(shape, f"transformer.h.{layer}.{source}.{kind}", part, parts)


def _vision_piece(name: str, shape: tuple[int, ...]) -> Piece:
    return Piece(shape, f"transformer.visual.{name}")


def _connector_piece(name: str, shape: tuple[int, ...]) -> Piece:
    inside = "" if name.startswith(("ln_post", "proj")) else "attn_pool."
    return Piece(shape, f"transformer.visual.{inside}{name}")


def plan_files(parts: Mapping[str, Mapping[str, Piece]], size: Callable[[Piece], int], limit: int) -> Plan:
    """Files of at most ``limit`` bytes for the LLM, and one each for ViT and resampler.

    Args:
        parts: see :func:`layout`.
        size: bytes of a piece.
        limit: a larger tensor has a file of its own.
    """
    shards: list[dict[str, Piece]] = [{}]
    room = limit
    for name, piece in parts[LLM].items():
        if size(piece) > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = piece
        room -= size(piece)
    plan = {f"{LLM}/model-{at:05d}-of-{len(shards):05d}.safetensors": shard for at, shard in enumerate(shards, 1)}
    return plan | {part: dict(parts[part]) for part in (VISION, CONNECTOR)}


def convert(source: Path, target: Path) -> str:
    """Convert a downloaded checkpoint; an interrupted conversion goes on, a finished one is verified.

    Args:
        source: as downloaded: config.json, qwen.tiktoken, index and weights files.
        target: new, or of an earlier run on the same source.

    Returns:
        A sentence on what was done.

    Raises:
        UserError: the source is incomplete or another model, the target holds something else, or it cannot be written.
    """
    settings, vocabulary = read_settings(source), read_vocabulary(source / VOCABULARY)
    _check_ids(settings, vocabulary, source)
    weights, parts = Source(source), layout(settings)
    check_source(weights, [piece for pieces in parts.values() for piece in pieces.values()])
    settings.llm.dtype = weights.about[OTHER_NAMES["lm_head.weight"]][0]
    plan = plan_files(parts, lambda piece: byte_size(weights, piece), SHARD)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target / ".lock", timeout=0):
            digest = f"format {FORMAT}, {weights.digest(source / CONFIG, source / VOCABULARY)}"
            return _fill(target, settings, vocabulary, weights=weights, plan=plan, digest=digest)
    except Timeout as error:
        raise UserError(f"another process is converting into {target}; wait for it") from error
    except OSError as error:
        what, why = error.filename or target, error.strerror or error
        raise UserError(f"cannot write {what}: {why}; make room or choose another folder, the same command goes on") from error


def verify(target: Path) -> str:
    """Hold the files of a finished conversion against the checksums that were written with them.

    Returns:
        A sentence.

    Raises:
        UserError: there is no finished conversion, or a file is missing or was changed.
    """
    files = read_converted(target).files
    with tqdm(total=sum((target / name).stat().st_size for name in files if (target / name).is_file()), unit="B", unit_scale=True) as bar:
        changed = [name for name in sorted(files) if checksum(target / name, bar.update) != files[name]]
    if changed:
        raise UserError(
            f"{target}: {len(changed)} of {len(files)} files are not as they were written, first {changed[0]}; run cir convert "
            f"qwen-vl-chat SRC {target}, which writes them again"
        )
    return f"{target} is complete: all {len(files)} files are as they were written"


def _check_ids(settings: Settings, vocabulary: list[bytes], source: Path) -> None:
    start = len(vocabulary) + SPECIAL.index("<img>")
    if start != settings.image_start or len(vocabulary) + len(SPECIAL) > settings.llm.vocab_size:
        raise UserError(
            f"{source / VOCABULARY} has {len(vocabulary)} tokens, which makes <img> {start}, and {CONFIG} says {settings.image_start} of "
            f"{settings.llm.vocab_size}; download both again"
        )


def _fill(target: Path, settings: Settings, vocabulary: list[bytes], *, weights: Source, plan: Plan, digest: str) -> str:
    record = read_record(target, CONFIG)
    if record and record["source"] != digest:
        raise UserError(
            f"{target} is of another checkpoint or version, or the source's files were changed since; remove it or choose another folder"
        )
    for rest in {*target.glob("**/.*.safetensors.*"), *target.glob("**/.*.json.*")}:
        rest.unlink()  # of a run that was killed
    sizes = {name: sum(byte_size(weights, piece) for piece in pieces.values()) for name, pieces in plan.items()}
    with tqdm(total=sum(sizes.values()), desc="convert", unit="B", unit_scale=True) as bar:
        known: Any = record.get("files", {})
        done = {name: known[name] for name in known if checksum(target / name, bar.update) == known[name]}
        about = {"format": FORMAT, "vision": asdict(settings.vision), "queries": settings.queries, "source": digest}
        there = {*plan, *(f"{LLM}/{file.name}" for file in (target / LLM).glob("*.json"))}
        if done.keys() == known.keys() == there and _says(target / CONFIG, about | {"files": known}):
            (target / PROGRESS).unlink(missing_ok=True)
            return f"{target} was complete already: all {len(done)} files are as they were written"
        _check_room(target, sum(size for name, size in sizes.items() if name not in done))
        write_json(target / PROGRESS, {"source": digest, "files": done})
        (target / CONFIG).unlink(missing_ok=True)
        done |= _write_small_files(target, settings, vocabulary, plan=plan, sizes=sizes)
        for name in [name for name in plan if name not in done]:
            done[name] = _write_file(target / name, weights, plan[name], bar.update)
            write_json(target / PROGRESS, {"source": digest, "files": done})
    check_written(target, weights, plan)
    write_json(target / CONFIG, about | {"files": done})
    (target / PROGRESS).unlink()
    count = sum(len(pieces) for pieces in plan.values())
    return f"{target}: {len(weights.about)} tensors became {count} in {len(plan)} files, {sum(sizes.values()) / 1e9:.2f} GB, verified"


def _says(file: Path, content: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(file.read_text()) == content)
    except (OSError, ValueError):
        return False


def _write_file(file: Path, weights: Source, pieces: Mapping[str, Piece], wrote: Callable[[int], object]) -> str:
    sums: list[str] = []
    replace_file(file, lambda part: sums.append(write_tensors(part, weights, pieces, wrote)))
    return sums[0]


def _check_room(target: Path, needed: int) -> None:
    if (free := shutil.disk_usage(target).free) < needed:
        raise UserError(
            f"{target}: {needed / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB are free; make room or choose another disk"
        )


def _write_small_files(
    target: Path, settings: Settings, vocabulary: list[bytes], *, plan: Plan, sizes: Mapping[str, int]
) -> dict[str, str | None]:
    """Write the LLM's config, tokenizer and index; return their checksums."""
    folder, prefix = target / LLM, f"{LLM}/"
    folder.mkdir(exist_ok=True)
    fast_tokenizer(vocabulary).save_pretrained(folder)
    settings.llm.save_pretrained(folder)
    about = json.loads((folder / CONFIG).read_text())
    write_json(folder / CONFIG, {key: value for key, value in about.items() if key != "transformers_version"})
    shards = {name.removeprefix(prefix): pieces for name, pieces in plan.items() if name.startswith(prefix)}
    total = sum(size for name, size in sizes.items() if name.startswith(prefix))
    index = {"metadata": {"total_size": total}, "weight_map": {name: shard for shard, pieces in shards.items() for name in pieces}}
    write_json(folder / "model.safetensors.index.json", index)
    return {f"{prefix}{file.name}": checksum(file) for file in sorted(folder.glob("*.json"))}
