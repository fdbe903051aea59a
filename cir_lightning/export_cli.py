"""``cir export``: give a trained model away."""

from __future__ import annotations

import argparse
from pathlib import Path

from cir_lightning.data_cli import Refusing

HELP = """\
usage: cir export CHECKPOINT FOLDER [--merge]

Write a trained model as a folder of its own, to be put on a hub or handed on: the LLM's adapters in PEFT's format, everything else that was
trained as safetensors, the configuration with the base model's revision, and a model card with the run's results. CHECKPOINT is a run
folder, a checkpoint file or the name of packaged weights. It is loaded by

  from cir_lightning import load
  model = load("FOLDER")

on a machine that has the base model, or reaches it on the hub; another revision of it is refused.

  --merge  merge the adapters into the base model and write that, too: nothing of it is then needed but what comes with pip packages and,
           of a vision tower and an LLM that were composed by their ids, the vision tower"""


class _Parser(Refusing, argparse.ArgumentParser):
    pass


def run(argv: list[str]) -> int:
    """Export a model.

    Args:
        argv: its checkpoint, the folder, options.

    Returns:
        The exit code.

    Raises:
        UserError: see :func:`cir_lightning.export.export`.
    """
    if not argv or set(argv) & {"-h", "--help"}:
        print(HELP)
        return 0
    parser = _Parser(prog="cir export", add_help=False, allow_abbrev=False)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--merge", action="store_true")
    asked = parser.parse_args(argv)
    from cir_lightning.export import export

    print(f"exported: {export(asked.checkpoint, asked.folder, merge=asked.merge)}")
    return 0
