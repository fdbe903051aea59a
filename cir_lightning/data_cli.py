"""``cir data``: the files of the benchmarks, before anything is trained. Each command is a module that is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import NoReturn

from data_modules.errors import UserError

COMMANDS = {
    "check": ("cir_lightning.data_check", "what there is and what is missing:    cir data check fashioniq"),
    "download": ("cir_lightning.data_download", "fetch pictures, or say where they are:  cir data download fashioniq"),
}


class Refusing:
    """A parser's way to refuse options, in one sentence; to be inherited before it.

    Attributes:
        prog: the parser's name of the command.
    """

    prog: str

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the usage and leaving.

        Raises:
            UserError: always.
        """
        raise UserError(f"{' '.join(str(ex or message).split())}; {self.prog} --help shows what there is") from ex


def help_text() -> str:
    """What ``cir data --help`` prints."""
    lines = ["usage: cir data COMMAND NAME [options]", "", *(f"  cir data {name:<9} {text}" for name, (_, text) in COMMANDS.items())]
    return "\n".join([*lines, "", "  cir data COMMAND --help shows the options of a command and the names of the benchmarks."])


def run(argv: list[str]) -> int:
    """Run one command.

    Args:
        argv: its name, that of a benchmark, and options.

    Returns:
        The exit code.

    Raises:
        UserError: there is no such command, or the command's own reasons.
    """
    if not argv or argv[0] in {"-h", "--help"}:
        print(help_text())
        return 0
    name, *options = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command 'data {name}'; commands are {', '.join(f'data {command}' for command in COMMANDS)}")
    code: int = import_module(COMMANDS[name][0]).run(options)
    return code
