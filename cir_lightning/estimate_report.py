"""What ``cir estimate`` says of a recipe: tables of parameters, tokens, memory, FLOPs and time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from cir_lightning.estimate import (
    Flops,
    Pass,
    Precision,
    activation_bytes,
    count,
    llm_flops,
    optimizer_bytes,
    parts_of,
    quantised_weights,
    sight_cost,
)

if TYPE_CHECKING:
    from cir_lightning.encoder import Encoder
    from cir_lightning.estimate_gpus import GPU
    from cir_lightning.template import TaskPrompt

GIB = 2**30
LARGEST = "largest batch_size"
PICTURES = {  # that this project reads of a benchmark: those in its triplets, queries and galleries
    "FashionIQ": 54_885,
    "Shoes": 13_137,
    "CIRR": 21_551,
    "CIRCO": 123_403,
    "EmojiCIR": 3_583,
}
CAPTION = "make it a darker blue with longer sleeves and a small pattern"  # usual words, to be counted off


@dataclass(frozen=True)
class Setting:
    """What the recipe runs on, and how.

    Attributes:
        gpu: the accelerator.
        nodes: machines.
        devices: GPUs of each.
        batch_size: B, triplets of one process.
        chunk: pictures, queries or targets whose activations are in memory at once; None for all of a batch.
        precision: of the trainer, as ``bf16-mixed``.
        steps: of the whole run, optimizer steps; None if unknown.
        accumulate: batches to a step.
        utilisation: share of the GPU's peak that is reached.
        margin: share of its memory that is left free for the context, workspaces and fragmentation.
        caption_words: of a typical caption.
        pictures: of the benchmark; None if unknown.
    """

    gpu: GPU
    nodes: int
    devices: int
    batch_size: int
    chunk: int | None
    precision: str
    steps: int | None
    accumulate: int
    utilisation: float
    margin: float
    caption_words: int
    pictures: int | None

    @property
    def processes(self) -> int:
        """Of all machines."""
        return self.nodes * self.devices

    @property
    def peak(self) -> float:
        """FLOPs of one GPU in a second, at its peak in the precision of the run."""
        return 1e12 * (self.gpu.bf16 if "16" in self.precision else self.gpu.float32)


Row = tuple[str, tuple[float | str | None, ...]]  # a name, and a value for each column: a number, a word, or None where it is unknown


class Table(NamedTuple):
    """A part of the estimate.

    Attributes:
        title: of the table.
        columns: name and unit of each column of numbers: ``bytes``, or nothing where the rows' names have their own.
        rows: the content.
        notes: what the numbers leave out.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: list[Row]
    notes: tuple[str, ...] = ()


def build_skeleton(encoder: Encoder) -> Encoder:
    """Build an encoder on the meta device, in training mode: no weights are read and no memory is taken."""
    with torch.device("meta"):
        encoder.build()
    return encoder.train()


def estimate(encoder: Encoder, setting: Setting) -> list[Table]:
    """All tables.

    Args:
        encoder: built by :func:`build_skeleton`.
        setting: what it runs on.
    """
    lengths = sequence_lengths(encoder, setting.caption_words)
    passes = [Pass(setting.batch_size, length) for length in lengths.values()]
    parameters = parameters_table(encoder)
    trainable, size = parameters.rows[-1][1][1:]
    tables = [
        parameters,
        Table("tokens", (("of one", ""), ("in a batch", "")), [(side, (n, n * setting.batch_size)) for side, n in lengths.items()]),
        *memory_tables(encoder, setting, passes, int(trainable or 0), float(size or 0)),
        compute_table(encoder, setting, passes),
        cache_table(encoder, setting),
    ]
    told = [
        table._replace(rows=[row for row in table.rows if row[0] == LARGEST or any(value != 0 for value in row[1])]) for table in tables
    ]
    return [table for table in told if table.rows]


# ---- the tables ----------------------------------------------------------------------------------------------------------------


def sequence_lengths(encoder: Encoder, caption_words: int) -> dict[str, int]:
    """Tokens L of a query and of a target, with everything in them: template, image tokens, soft prompt, a typical caption."""
    prompts: dict[str, TaskPrompt | None] = {side: getattr(encoder, f"{side}_prompt", None) for side in ("query", "target")}
    caption = " ".join(word for word, _ in zip(cycle(CAPTION.split()), range(caption_words), strict=False))
    return {side: _length(encoder, prompt, caption) for side, prompt in prompts.items() if prompt}


def _length(encoder: Any, task: TaskPrompt, caption: str) -> int:
    image, soft = (torch.zeros(1, length, 1) for length in (getattr(encoder.connector, "queries", 0), encoder.soft_prompt.length))
    vision = encoder.vision.patches if task.template.has_vision else 0
    embed: Any = lambda ids: torch.zeros(*ids.shape, 1)  # noqa: E731 - only the number of tokens is wanted
    return int(task.fill(embed, image, soft, [caption] if task.template.has_caption else None, vision).mask.sum())


def parameters_table(encoder: Encoder) -> Table:
    """Parameters and their memory by part; the temperature, a single number, is left out."""
    quantisation = quantisation_of(encoder)
    packed = quantised_weights(llm_of(encoder), quantisation)
    counts = {part: count(parameters, packed, quantisation) for part, parameters in parts_of(encoder).items()}
    rows: list[Row] = [*counts.items(), ("all", tuple(map(sum, zip(*counts.values(), strict=True))))]
    return Table("parameters", (("total", ""), ("trainable", ""), ("memory", "bytes")), rows)


def memory_tables(encoder: Encoder, setting: Setting, passes: list[Pass], trainable: int, weights: float) -> list[Table]:
    """Memory of one GPU in a training step, without and with gradient checkpointing; and whether it is enough."""
    autocast = precision_of(encoder, setting).autocast
    fixed = {"weights": weights, **optimizer_bytes(trainable, processes=setting.processes, autocast=autocast)}
    constant, grows = activations(encoder, setting, passes, trainable=trainable > 0)
    constant = {name: (value, value) for name, value in fixed.items()} | constant
    usable = setting.gpu.memory * GIB * (1 - setting.margin)
    start, growing = ([sum(pair[at] for pair in some.values()) for at in (0, 1)] for some in (constant, grows))
    totals = [start[at] + growing[at] for at in (0, 1)]
    batch = [(usable - start[at]) / growing[at] * setting.batch_size for at in (0, 1)]
    rows: list[Row] = [*constant.items(), *grows.items(), ("all", tuple(totals))]
    rows += [(f"{setting.gpu.name} less {setting.margin:.0%}", (usable, usable))]
    fits: list[Row] = [
        ("fits", tuple("yes" if total <= usable else "no" for total in totals)),
        (LARGEST, tuple(max(0, int(size)) for size in batch)),
    ]
    notes = () if llm_of(encoder) is not None else ("there is no LLM to keep activations of; those of the small networks are left out",)
    return [
        Table("memory of one GPU", _both_ways("bytes", encoder), rows, notes + _trained_tower(encoder)),
        Table(f"batch_size {setting.batch_size} on {setting.gpu.name}", _both_ways("", encoder), fits),
    ]


Pair = tuple[float, float]  # without and with gradient checkpointing


def activations(encoder: Encoder, setting: Setting, passes: list[Pass], *, trainable: bool) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """Bytes that do not depend on the batch size, and bytes that grow with it.

    In chunks, one of them at a time keeps its activations, and of the batch there are what the Connector and the soft prompt made of its
    pictures, and the gradient of that.
    """
    llm, sight, pictures = llm_of(encoder), sight_cost(encoder), 2 * setting.batch_size
    grows: dict[str, Pair] = {"features of the pictures": (float(pictures * feature_bytes(encoder)),) * 2}
    chunk = min(setting.chunk or pictures, pictures)
    seeing = (chunk * sight.bytes,) * 2
    if llm is None or not trainable:
        return {}, grows | {"activations, Connector and soft prompt": seeing}
    precision, together = precision_of(encoder, setting), [passes]
    if setting.chunk:
        together = [[Pass(min(chunk, one.sequences), one.length)] for one in passes]
    off, on = (max(activation_bytes(llm, some, precision, checkpointing=on) for some in together) for on in (False, True))
    if not setting.chunk:
        return {}, grows | {"activations, Connector and soft prompt": seeing, "activations, LLM": (off, on)}
    tokens = int(getattr(encoder.connector, "queries", 0)) + encoder.soft_prompt.length  # type: ignore[union-attr, operator]
    kept = float(2 * 4 * pictures * (tokens * int(llm.config.hidden_size) + encoder.tower.width))
    constant = {f"activations of a chunk of {chunk}": (max(seeing[0], off), max(seeing[1], on))}
    return constant, grows | {"image tokens and soft prompts, with gradients": (kept, kept)}


def _trained_tower(encoder: Encoder) -> tuple[str, ...]:
    """What is left out where the vision tower has adapters."""
    told = "the vision tower has adapters: pictures go through it at every step, and its activations, FLOPs and time are not counted"
    return (told,) if encoder.tower.trained else ()


def compute_table(encoder: Encoder, setting: Setting, passes: list[Pass]) -> Table:
    """FLOPs of a batch on one GPU, and time at the stated utilisation, without and with gradient checkpointing."""
    llm, chunked = llm_of(encoder), setting.chunk is not None  # each chunk is computed forward once more
    seeing = 2 * setting.batch_size * sight_cost(encoder).flops * (4 / 3 if chunked else 1)
    trainable = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    rows: list[Row] = []
    totals = [seeing, seeing]
    if llm is not None:
        both = [llm_flops(llm, passes, checkpointing=on) for on in (False, True)]
        both = [one._replace(again=one.again + one.forward * chunked) for one in both]
        if not trainable:
            both = [Flops(one.forward, 0, 0) for one in both]
        rows += [(f"LLM, {part} [TFLOP]", tuple(getattr(one, part) / 1e12 for one in both)) for part in ("forward", "backward", "again")]
        totals = [seeing + one.step for one in both]
    else:
        totals = [6.0 * trainable * setting.batch_size] * 2  # forward 2, backward 4 for each parameter
    seconds = [total / (setting.utilisation * setting.peak) for total in totals]
    batches = None if setting.steps is None else setting.steps * setting.accumulate
    rows += [
        ("Connector and soft prompt [TFLOP]", (seeing / 1e12, seeing / 1e12)),
        ("all, of a batch on one GPU [TFLOP]", tuple(total / 1e12 for total in totals)),
        (f"seconds of a batch at {setting.utilisation:.0%} of {setting.peak / 1e12:g} TFLOP/s", tuple(seconds)),
        ("triplets a second, all GPUs", tuple(setting.batch_size * setting.processes / one for one in seconds)),
        (
            f"hours of training{f', {batches:,} batches' if batches else ''}",
            tuple(None if batches is None else batches * one / 3600 for one in seconds),
        ),
        ("vision tower, once for each picture [TFLOP]", (tower_flops(encoder) / 1e12,) * 2),
    ]
    notes = ("not counted: reading, validation, communication of processes; every picture of a batch is taken to be another one",)
    return Table("compute", _both_ways("", encoder), rows, notes + _trained_tower(encoder))


def cache_table(encoder: Encoder, setting: Setting) -> Table:
    """The frozen vision tower's output: on disk once, and in the memory of every process."""
    each = feature_bytes(encoder)
    total = None if setting.pictures is None else float(each * setting.pictures)
    notes = () if total else ("the number of pictures is not known; give it with --pictures",)
    rows: list[Row] = [("each, and all pictures", (each, setting.pictures, total))]
    columns = (("one picture", "bytes"), ("pictures", ""), ("on disk, and in memory of each process", "bytes"))
    return Table("feature cache", columns, rows, notes)


# ---- what is asked of an encoder -----------------------------------------------------------------------------------------------


def llm_of(encoder: Encoder) -> Any:
    """Its language model, if it has one."""
    return getattr(getattr(encoder, "backbone", None), "llm", None)


def quantisation_of(encoder: Encoder) -> str:
    """How its LLM's weights are packed."""
    return next((checkpoint.quantisation for checkpoint in reversed(encoder.base_models().values())), "none")


def precision_of(encoder: Encoder, setting: Setting) -> Precision:
    """The format of its frozen weights and of its activations."""
    llm = llm_of(encoder)
    size = 4 if llm is None else llm.get_input_embeddings().weight.element_size()
    return Precision(size, "mixed" in setting.precision)


def feature_bytes(encoder: Encoder) -> int:
    """Bytes of the float16 features of one picture: patches, and the LVLM's own visual tokens if a template wants them."""
    towers = [encoder.tower, *([encoder.vision] if encoder.vision is not None else [])]
    return sum(2 * tower.patches * tower.width for tower in towers)


def tower_flops(encoder: Encoder) -> float:
    """FLOPs of the frozen vision tower for one picture.

    Counted where the tower runs without weights. Where it has an image processor, which wants pixels: 2 for each parameter of the
    checkpoint outside its LLM and each patch feature.
    """
    tower = encoder.tower
    if hasattr(tower, "processor"):
        parts = parts_of(encoder)["vision tower and projector"]
        return 2.0 * tower.patches * sum(parameter.numel() for parameter in parts)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        tower(torch.empty(1, 3, tower.image_size, tower.image_size, dtype=torch.uint8))
    return float(counter.get_total_flops())


def _both_ways(unit: str, encoder: Any) -> tuple[tuple[str, str], ...]:
    """Two columns; the one that the recipe asks for is marked."""
    on = bool(getattr(getattr(encoder, "backbone", None), "gradient_checkpointing", False))
    names = ("all activations kept", "with checkpointing")
    return tuple((f"{name}{' (recipe)' if at == on else ''}", unit) for at, name in enumerate(names))
