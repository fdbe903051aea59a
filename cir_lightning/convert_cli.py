"""``cir convert``: checkpoints that transformers cannot read, rewritten into folders that backbones read. No code of theirs runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cir_lightning.data_cli import Refusing
from data_modules.errors import UserError

NAMES = ("qwen-vl-chat",)
HELP = """\
Convert the checkpoint that lies in SRC, as it was downloaded, into the new folder DST. Nothing of SRC is executed, and memory holds at
most one of its files. After an interruption, the same command goes on; when DST is complete, it verifies DST, and so does --verify
without SRC. qwen-vl-chat is
Qwen/Qwen-VL-Chat (or Qwen/Qwen-VL) with config.json, qwen.tiktoken, the index and the weights; recipes then name DST:
model.encoder.backbone: {class_path: cir_lightning.backbones.qwen_vl.QwenVLChat, init_args: {folder: DST}}"""


class _Parser(Refusing, argparse.ArgumentParser):
    pass


def run(argv: list[str]) -> int:
    """Convert a checkpoint.

    Args:
        argv: name of the checkpoint, its folder and the new folder.

    Returns:
        The exit code, 0.

    Raises:
        UserError: an argument is wrong, or see :func:`cir_lightning.backbones.qwen_vl_convert.convert`.
    """
    parser = _Parser(prog="cir convert", usage="cir convert [-h] [--verify] NAME [SRC] DST", description=HELP, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("folders", metavar="SRC DST", type=Path, nargs="*", help="folder of the downloaded checkpoint, folder to write")
    parser.add_argument("--verify", action="store_true", help="only hold the files of DST against what was written; SRC is not needed")
    options = parser.parse_intermixed_args(argv or ["--help"])
    if options.name not in NAMES:
        raise UserError(f"unknown checkpoint {options.name!r}; there are {', '.join(NAMES)}")
    _check(options.folders, verify=options.verify)
    from cir_lightning.backbones.qwen_vl_convert import convert, verify

    try:
        print((verify if options.verify else convert)(*options.folders))
    except KeyboardInterrupt:
        print("cir: stopped; the same command goes on", file=sys.stderr)
        raise
    return 0


def _check(folders: list[Path], *, verify: bool) -> None:
    if verify and len(folders) != 1:
        raise UserError("--verify takes DST alone, the folder that was written; cir convert --help shows what there is")
    if not verify and len(folders) < 2:
        missing = "DST is missing, the folder to write" if folders else "SRC and DST are missing"
        raise UserError(f"{missing}; cir convert --help shows what there is")
    if len(folders) > 2:
        raise UserError(f"{folders[2]} is one folder too many; cir convert --help shows what there is")
