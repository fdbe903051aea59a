"""``cir data check``: what there is of a benchmark, and what is missing or damaged."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from cir_lightning.data_cli import Refusing
from data_modules.check import check, to_text, write_lists
from data_modules.registry import BENCHMARKS, find_benchmark

DATA = "--data."  # of cir fit's options, which the remedies in messages name
HELP = f"""\
usage: cir data check NAME [--root FOLDER] [--fast] [options of the benchmark]

Count the records of a benchmark beside the official counts, and open every picture. What is missing or unreadable is listed in
FOLDER/missing.tsv and FOLDER/unreadable.tsv. NAME is one of {", ".join(BENCHMARKS)}.
Exit code: 0 if training and scoring would be on all of the benchmark as published, 1 if anything is missing, unreadable or not the
official count, in training or evaluation, 2 for a mistake. cir data check NAME --help shows the options of a benchmark. They may also be
written as cir fit has them: --data.root."""


class _Parser(Refusing, ArgumentParser):
    pass


def run(argv: list[str]) -> int:
    """Check a benchmark.

    Args:
        argv: name and options.

    Returns:
        The exit code: 0 if the benchmark is complete, 1 if not.

    Raises:
        UserError: there is no such benchmark or option, or the records cannot be read.
    """
    if not argv or argv[0] in {"-h", "--help"}:
        print(HELP)
        return 0
    name, *options = argv
    kind = find_benchmark(name)
    parser = _Parser(prog=f"cir data check {name}", description=HELP.partition("\n\n")[2], allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", help="only see whether the files exist, and do not open them")
    parser.add_class_arguments(kind, skip={"train"})  # of a zero-shot benchmark: another one, with a check of its own
    plain = [f"--{option.removeprefix(DATA)}" if option.startswith(DATA) else option for option in options]
    asked: dict[str, Any] = parser.parse_args(plain).as_dict()
    fast = asked.pop("fast")
    data = kind(**asked)
    report = check(data, fast=fast)
    print(to_text(report, data.root))
    write_lists(report, data.root)
    return 0 if report.complete else 1
