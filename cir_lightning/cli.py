"""The front door ``cir``: light until a command needs torch and Lightning."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from cir_lightning import stops

COMMANDS = {
    "fit": "train a model:            cir fit --config emoji.yaml",
    "validate": "score on the val split:   cir validate --ckpt_path runs/emoji",
    "test": "score on the test split:  cir test --ckpt_path runs/emoji",
    "predict": "write ranked lists:       cir predict --ckpt_path runs/emoji",
    "estimate": "memory and time, untried: cir estimate --config emoji.yaml --gpu h100-80",
    "bench": "where time goes:          cir bench --config emoji.yaml",
    "study": "compare arms and seeds:   cir study run core",
    "analyze": "what goes wrong, and why:  cir analyze failures --ckpt_path runs/emoji",
    "export": "give a model away:        cir export runs/emoji my-model",
    "cache": "patch features on disk:   cir cache build --config emoji.yaml",
    "data": "get a benchmark:          cir data download fashioniq",
    "convert": "convert a checkpoint:     cir convert qwen-vl-chat SRC DST",
}
LIGHT = ("analyze", "bench", "cache", "data", "estimate", "export", "study", "convert")  # modules of their own, with late imports
USAGE_ERROR = 2


def recipe_folder() -> Path:
    """The folder of the recipes that come with the package."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def recipes() -> list[str]:
    """The names of the recipes and overlays that come with the package; studies are no recipes."""
    folder = recipe_folder()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml") if path.parent.name != "studies")


def help_text() -> str:
    """What ``cir --help`` prints."""
    lines = ["usage: cir COMMAND [options]", "", "Composed image retrieval with large vision-language models.", ""]
    lines += [f"  cir {name:<9} {text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        "  cir COMMAND --help shows the options of a command, cir fit --config emoji.yaml --print_config the whole configuration.",
        f"  Recipes, found by name from any folder: {', '.join(recipes())}.",
        "  Options: --help, --version.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; by default those of the process.

    Returns:
        The exit code: 0; 2 for a mistake of the user (one sentence on stderr); 130 when stopped by Ctrl-C, 143 by SIGTERM; 141 if nobody
        reads what it writes; 1 if data are incomplete or a run of a study failed.
    """
    argv = sys.argv[1:] if arguments is None else arguments
    if not argv or argv[0] in {"-h", "--help"}:
        print(help_text())
        return 0
    if argv[0] == "--version":
        from cir_lightning import __version__

        print(f"cir-lightning {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        return _fail(f"unknown command {argv[0]!r}; commands are {', '.join(COMMANDS)}")
    return _run(argv)


def _run(argv: list[str]) -> int:
    if "fit" in argv[:2] and stops.in_slurm():  # also cir study fit
        stops.listen(signal.SIGUSR1)  # by itself it would kill the process, and imports take seconds
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads otherwise spin: 10 to 50 times slower beside a busy process
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return _dispatch(argv)
    except ImportError as error:
        what = " ".join(str(error).split())[:300].rstrip(".")
        if isinstance(error, ModuleNotFoundError) and error.name:
            what = f"package {error.name.partition('.')[0]} is missing"
        return _fail(f"{what}; install what constraints.txt names, see the README")
    except KeyboardInterrupt:
        return stops.leave()
    except BrokenPipeError:  # what it writes to, such as head, has ended; Python would complain again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _dispatch(argv: list[str]) -> int:
    from data_modules.errors import UserError

    try:
        if argv[0] in LIGHT:
            code: int = import_module(f"cir_lightning.{argv[0]}_cli").run(argv[1:])
            return code
        from cir_lightning.lightning_cli import run

        run(argv)
    except UserError as error:
        return _fail(str(error))
    return 0


def _fail(sentence: str) -> int:
    print(f"cir: {sentence}", file=sys.stderr)
    return USAGE_ERROR


def entry() -> NoReturn:
    """The process ``cir``.

    One of several processes leaves without Python's own ending: a thread of gloo that lets go of a tensor meanwhile would abort it,
    although all its work is done (before CPython 3.14).
    """
    code = main()
    if (torch := sys.modules.get("torch")) and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
