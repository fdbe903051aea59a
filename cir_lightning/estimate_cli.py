"""``cir estimate``: what a recipe takes of memory and time, before there is a GPU or a single weight."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cir_lightning.data_cli import Refusing
from cir_lightning.estimate_gpus import GPUS
from data_modules.errors import UserError

if TYPE_CHECKING:
    from cir_lightning.estimate_report import Setting, Table

HELP = f"""\
usage: cir estimate --config RECIPE [--config OVERLAY] [--gpu NAME] [--nodes N] [--devices N] [--utilisation SHARE] [--margin SHARE]
                    [--caption_words N] [--pictures N] [--json FILE] [options of cir fit]

Parameters, memory of one GPU, tokens, FLOPs and time of a recipe's training, by arithmetic: no weights are read (of a checkpoint its
config.json is enough) and nothing is run. The options of cir fit override the recipe, as there: --data.batch_size 32.

  --gpu            one of {", ".join(GPUS)}; by default h100-80
  --nodes          machines; by default the recipe's
  --devices        GPUs of each; by default the recipe's
  --utilisation    share of the GPU's peak that training reaches; by default 0.4
  --margin         share of its memory that stays free for the context, workspaces and fragmentation; by default 0.1
  --caption_words  of a typical caption; by default 12, as in Fashion-IQ
  --pictures       of the benchmark, where their number is not known
  --json           write the tables to this file, too

The formulas are in cir_lightning/estimate.py. They are held against measurement on tiny models on the CPU; peak memory of a GPU is
unrun."""


class _Parser(Refusing, argparse.ArgumentParser):
    pass


def run(argv: list[str]) -> int:
    """Estimate a recipe.

    Args:
        argv: options, also those of ``cir fit``.

    Returns:
        The exit code.

    Raises:
        UserError: an option is wrong, or the checkpoint's configuration cannot be read.
    """
    if not argv or set(argv) & {"-h", "--help"}:
        print(HELP)
        return 0
    asked, rest = _parser().parse_known_args(argv)
    _check(asked)
    from cir_lightning.estimate_report import build_skeleton, estimate
    from cir_lightning.lightning_cli import Parsed
    from cir_lightning.lightning_cli import run as parse

    cli = parse(["fit", *rest], Parsed)
    if cli is None:
        return 0
    setting = make_setting(asked, cli)
    tables = estimate(build_skeleton(cli.model.encoder), setting)
    print(to_text(tables, setting))
    if asked.json:
        _write(asked.json, tables, setting)
    return 0


def _parser() -> _Parser:
    parser = _Parser(prog="cir estimate", add_help=False, allow_abbrev=False)
    parser.add_argument("--gpu", default="h100-80", choices=GPUS)
    for name in ("nodes", "devices", "pictures"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--caption_words", type=int, default=12)
    parser.add_argument("--utilisation", type=float, default=0.4)
    parser.add_argument("--margin", type=float, default=0.1)
    parser.add_argument("--json", type=Path)
    return parser


def _check(asked: argparse.Namespace) -> None:
    for name in ("nodes", "devices", "pictures", "caption_words"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value} is not possible; set it to 1 or more")
    if not 0 < asked.utilisation <= 1:
        raise UserError(f"--utilisation={asked.utilisation} is no share; set it above 0 and up to 1")
    if not 0 <= asked.margin < 1:
        raise UserError(f"--margin={asked.margin} is no share; set it to 0 up to, but not including, 1")


def make_setting(asked: argparse.Namespace, cli: Any) -> Setting:
    """What the recipe runs on: the options where they are given, else what the recipe says."""
    from cir_lightning.estimate_report import PICTURES, Setting

    trainer, data = cli.config.fit.trainer, cli.datamodule
    devices, nodes = asked.devices or _devices(trainer.devices), asked.nodes or trainer.num_nodes
    if nodes < 1:
        raise UserError(f"trainer.num_nodes={nodes} is not possible; set it to 1 or more")
    sources = [data, *([data.train] if getattr(data, "train", None) is not None else [])]
    known = [PICTURES.get(type(source).__name__) for source in sources]
    return Setting(
        gpu=GPUS[asked.gpu],
        nodes=nodes,
        devices=devices,
        batch_size=data.batch_size,
        chunk=cli.model.chunk,
        precision=str(trainer.precision or "32-true"),
        steps=_steps(trainer, sources[-1], nodes * devices),
        accumulate=trainer.accumulate_grad_batches,
        utilisation=asked.utilisation,
        margin=asked.margin,
        caption_words=asked.caption_words,
        pictures=asked.pictures or (None if None in known else sum(filter(None, known))),
    )


def _devices(devices: int | str | list[int]) -> int:
    """How many ``trainer.devices`` means: a number, or a list of their numbers, which may be text.

    Raises:
        UserError: only the machine knows.
    """
    listed = devices.strip("[]").split(",") if isinstance(devices, str) and "," in devices else devices
    if isinstance(listed, list):
        return len(listed)
    if str(listed).isdigit() and int(listed) > 0:
        return int(listed)
    raise UserError(f"trainer.devices={devices} does not say how many; set --devices")


def _steps(trainer: Any, training_set: Any, processes: int) -> int | None:
    """Optimizer steps of the run; None where neither they nor epochs of a known number of triplets are given."""
    if trainer.max_steps > 0:
        return int(trainer.max_steps)
    triplets = training_set.official.get("train triplets")
    if not triplets or not trainer.max_epochs or trainer.max_epochs < 1:
        return None
    return int(trainer.max_epochs * (triplets // (training_set.batch_size * processes * trainer.accumulate_grad_batches)))


# ---- output --------------------------------------------------------------------------------------------------------------------


def to_text(tables: list[Table], setting: Setting) -> str:
    """The tables, aligned."""
    gpu = setting.gpu
    lines = [
        f"{setting.nodes} x {setting.devices} {gpu.name} ({gpu.memory:g} GiB), batch_size {setting.batch_size} each, {setting.precision}",
        f"peak: {setting.peak / 1e12:g} TFLOP/s ({gpu.source})",
    ]
    for table in tables:
        cells = [[table.title, *(name for name, _ in table.columns)]]
        units = [unit for _, unit in table.columns]
        cells += [[name, *(_shown(value, unit) for value, unit in zip(values, units, strict=True))] for name, values in table.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["", *("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells)]
        lines += [f"  {note}" for note in table.notes]
    return "\n".join([*lines, "", "by arithmetic; peak memory of a GPU is unrun"])


def _shown(value: float | str | None, unit: str) -> str:
    if value is None:
        return "?"
    if isinstance(value, str):
        return value
    if unit == "bytes":
        power = next(at for at, least in ((3, 2**29), (2, 2**19), (1, 0)) if value >= least)
        return f"{value / 1024**power:,.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _write(file: Path, tables: list[Table], setting: Setting) -> None:
    from cir_lightning.storage import replace_file

    content: dict[str, Any] = {"setting": {**setting.__dict__, "gpu": setting.gpu._asdict()}}
    for table in tables:
        names = [f"{name} [{unit}]" if unit else name for name, unit in table.columns]
        content[table.title] = {row: dict(zip(names, values, strict=True)) for row, values in table.rows}
    try:
        replace_file(file, lambda part: part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--json {file}: cannot be written ({error.strerror}); name another file") from error
    print(f"written: {file}")
