"""``cir analyze``: what a trained model gets wrong, and what its prompts are used for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cir_lightning.data_cli import Refusing
from data_modules.errors import UserError

HELP = """\
usage: cir analyze failures --ckpt_path RUN [--split test|val] [options of cir test]
       cir analyze failures --predictions FILE --ckpt_path RUN
       cir analyze prompts  --ckpt_path RUN [--split test|val] [options of cir test]

  failures  recall by caption length, by number and kind of edit, by role or relation; over-reliance on the reference and on the
            caption; the target's rank before and after; hubs; the worst and the best queries. It encodes like cir test, and each caption
            without its picture once more. From the ranked lists of cir predict (--predictions runs/emoji/predictions.jsonl) it needs no
            model, and leaves out what needs embeddings; where a server has the answers, use those of cir predict --split val.
  prompts   usage of each prompt of the pool over gallery and queries, over training, keys and prompts beside each other, the words nearest
            to each prompt token, and what chooses them.

A page, pictures and tables are written to RUN/analysis."""

if TYPE_CHECKING:
    from data_modules.base import Split


class _Parser(Refusing, argparse.ArgumentParser):
    pass


def run(argv: list[str]) -> int:
    """Run one command.

    Args:
        argv: its name and options.

    Returns:
        The exit code.

    Raises:
        UserError: there is no such command, or the command's own reasons.
    """
    if not argv or set(argv) & {"-h", "--help"}:
        print(HELP)
        return 0
    command, *rest = argv
    if command not in {"failures", "prompts"}:
        raise UserError(f"unknown command 'analyze {command}'; commands are analyze failures, analyze prompts")
    parser = _Parser(prog=f"cir analyze {command}", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--split",
        choices=("test", "val"),
    )
    if command == "failures":
        parser.add_argument("--predictions", type=Path)
    asked, others = parser.parse_known_args(rest)
    if asked.split and getattr(asked, "predictions", None):
        raise UserError("--split does not go with --predictions, whose queries are those of cir predict; leave one out")
    if not any(word.partition("=")[0] in {"--ckpt_path", "--config", "-c"} for word in others):
        raise UserError(f"cir analyze {command} needs a model: give --ckpt_path runs/NAME")
    try:
        if command == "prompts":
            _prompts(others, asked.split or "test")
        else:
            _failures(others, asked.split or "test", asked.predictions)
    except OSError as error:
        raise UserError(
            f"cannot use {error.filename}: {error.strerror}; results go into the run's own folder, which must be writable"
        ) from error
    return 0


def _prompts(options: list[str], split: Split) -> None:
    from cir_lightning.analysis.prompts_run import analyze

    analyze(options, split)


def _failures(options: list[str], split: Split, predictions: Path | None) -> None:
    from cir_lightning.analysis.failures_run import from_checkpoint, from_predictions

    if predictions:
        from_predictions(predictions, options)
    else:
        from_checkpoint(options, split)
