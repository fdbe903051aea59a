"""``cir bench``: where time goes, stage by stage, for training, encoding and ranking."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from cir_lightning.data_cli import Refusing
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cir_lightning.bench.results import Bench

HELP = """\
usage: cir bench --config RECIPE [--config OVERLAY] [--batch N,N] [--rounds N] [--arms OVERLAY,OVERLAY] [--profile] [--out DIR]
                 [options of cir fit]
       cir bench --compare A.json B.json

Where time goes: the stages of a training step, of encoding gallery and queries, and of one query from a picture file to a ranked list; for
each its time, share, tokens, FLOPs and peak memory, by batch size. The recipe's precision, device and compiled parts are what is measured,
in one process. The options of cir fit override the recipe, as there: --trainer.precision bf16-mixed.

  --batch    batch sizes; by default 1,8,32,128
  --rounds   timed rounds, of which medians are shown; by default 5
  --arms     overlays, each laid over the recipe in turn and measured beside it: ablations/text-minilm.yaml,ablations/text-clip.yaml
  --profile  also write a trace of torch's profiler of one training step and one gallery batch, for chrome://tracing or ui.perfetto.dev
  --out      folder of bench.json (every sample), bench.md and bench.png; by default runs/bench
  --compare  show two runs, by their bench.json, in one table

Files are read from the system's cache in all rounds but the first. FLOPs, tokens and memory are counted in rounds of their own."""


class _Parser(Refusing, argparse.ArgumentParser):
    pass


def run(argv: list[str]) -> int:
    """Measure a recipe, or compare two runs.

    Args:
        argv: options, also those of ``cir fit``.

    Returns:
        The exit code.

    Raises:
        UserError: an option is wrong, or nothing could be measured.
    """
    if not argv or set(argv) & {"-h", "--help"}:
        print(HELP)
        return 0
    asked, rest = _parser().parse_known_args(argv)
    if asked.compare:
        from cir_lightning.bench.compare import compare

        if rest:
            raise UserError(f"--compare takes two files and nothing else, not {' '.join(rest)}")
        print(compare(*asked.compare))
        return 0
    batches = _batches(asked.batch)
    if asked.rounds < 1:
        raise UserError(f"--rounds={asked.rounds} is not possible; set it to 1 or more")
    if (file := asked.out / "bench.json").exists():
        raise UserError(f"{file} already holds a run; name another folder with --out")
    return _measure(asked, rest, batches, "cir bench " + shlex.join(argv))


def _parser() -> _Parser:
    parser = _Parser(prog="cir bench", add_help=False, allow_abbrev=False)
    parser.add_argument("--batch", default="1,8,32,128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arms", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A.json", "B.json"))
    return parser


def _batches(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--batch={text!r} is no list of batch sizes; write whole numbers from 1 on with commas between them: 1,8,32,128")
    return sorted({int(part) for part in parts})


def _measure(asked: argparse.Namespace, rest: list[str], batches: list[int], command: str) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler says on stderr when it starts and stops
    from cir_lightning.bench.arms import measure, parse
    from cir_lightning.bench.machine import header
    from cir_lightning.bench.results import Bench, write
    from cir_lightning.bench.tables import to_text

    overlays = [overlay.strip() for overlay in asked.arms.split(",") if overlay.strip()]
    parsed = [parse(rest, overlay) for overlay in ["", *overlays]]  # all of them, so that a slip is told before anything is measured
    recipes = [recipe for recipe in parsed if recipe is not None]
    if len(recipes) < len(parsed):
        return 0  # only the configuration was asked for
    del parsed
    bench = Bench(header(command) | {"rounds": asked.rounds})
    _saved(asked.out, lambda: asked.out.mkdir(parents=True, exist_ok=True))
    while recipes:
        traces = asked.out / f"traces-{len(bench.arms)}" if asked.profile else None
        bench.arms.append(measure(recipes.pop(0), batches, asked.rounds, traces))
        if bench.measured:
            _saved(asked.out, lambda: write(bench, asked.out / "bench.json"))
    if not bench.measured:
        raise UserError(bench.arms[0].refused)
    _saved(asked.out, lambda: _show(bench, asked.out))
    print(to_text(bench))
    written = [asked.out / name for name in ("bench.json", "bench.md", "bench.png")]
    print("written: " + ", ".join(map(str, [*written, *(trace for arm in bench.arms for trace in arm.traces)])))
    return 0


def _show(bench: Bench, folder: Path) -> None:
    from cir_lightning.bench.plot import draw
    from cir_lightning.bench.tables import to_markdown
    from cir_lightning.storage import replace_file

    replace_file(folder / "bench.md", lambda part: part.write_text(to_markdown(bench), encoding="utf-8"))
    replace_file(folder / "bench.png", lambda part: draw(bench).save(part, "PNG"))


def _saved(folder: Path, act: Callable[[], object]) -> None:
    try:
        act()
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from error
