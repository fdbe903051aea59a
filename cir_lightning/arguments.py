"""What the user typed: recipes by name, checkpoints by run folder, and one sentence for what does not parse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from cir_lightning.checkpoint import CONFIG_KEY, find_checkpoint, parse_config, read_checkpoint, usable_checkpoint
from cir_lightning.cli import recipe_folder, recipes
from cir_lightning.exported import is_exported
from cir_lightning.yaml_text import parse
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

HINT = "; cir COMMAND --help and --print_config show what there is"
VALUES = {"--config": "a recipe or a file", "-c": "a recipe or a file", "--ckpt_path": "a run folder or a checkpoint file"}
UNTOLD = ("Expected a <class 'NoneType'>", "Given value")  # of jsonargparse: that null would do, too, and all that was given
SECRET = re.compile(r"(^|_)(api_?key|access_key|secret|token|password|passwd)$", re.IGNORECASE)
LOGIN = re.compile(r"://[^/@\s]+:[^/@\s]+@")  # in an address
REQUIRED = "are required"
ONE_SEED = "is not used, as one seed rules weights and data; set seed_everything instead"


class Parser(LightningArgumentParser):
    """A parser whose errors are one sentence, and that takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """Read ``None`` as YAML's null: jsonargparse hands a null for an argument of a nested class down as that word.

        Raises:
            UserError: there is no such option, or a value is wrong; the config files are named if they alone are refused, too.
        """
        words = [f"{word.removesuffix('None')}null" if word.endswith("=None") else word for word in args or []]
        try:
            return super().parse_args(words, *others, **options)
        except UserError as error:
            raise self._of_configs(words) or error from error.__cause__

    def _of_configs(self, words: list[str]) -> UserError | None:
        """Why the config files, with which the words begin, are refused without the options after them, too, and their names."""
        end = 1
        while words[end : end + 1] == ["--config"]:
            end += 2
        files = words[2:end:2]
        if not files or any("\n" in file for file in files):  # the config that travels in a checkpoint
            return None
        try:
            super().parse_args(words[:end])
        except UserError as error:
            return None if REQUIRED in str(error) else UserError(f"--config {', '.join(files)}: {error}")
        return None

    def validate(self, *given: Any, **options: Any) -> None:
        """Check the nulls of a class's arguments, too, which jsonargparse takes for left out; its parsers are those that do not exit."""
        super().validate(*given, **(options if self.exit_on_error else options | {"skip_unset": False}))

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise instead of printing the usage and leaving.

        Raises:
            UserError: always.
        """
        text = sentence(str(ex or message).replace(HINT, ""))
        if REQUIRED in text:
            raise UserError(f"{text}; give --config RECIPE (recipes are {', '.join(recipes())}) or --ckpt_path runs/NAME") from ex
        raise UserError(text + HINT) from ex


def sentence(message: str, longest: int = 600) -> str:
    """Jsonargparse's message on one line; where it tried the members of a union, only what was wrong with the likeliest, the last."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -") and not line.strip(" -").startswith(UNTOLD)]
    starts = [at + 1 for at, line in enumerate(lines) if line == "Errors:"]
    return " ".join(lines[starts[-1] :] if starts else lines[:3])[:longest]


def find_config(name: str) -> str:
    """A config file as given, or the recipe of that name that comes with the package; it is YAML with keys.

    Raises:
        UserError: there is neither, the recipes are named; or the file is of another kind; or it sets what is not used.
    """
    path = next((path for path in (Path(name), recipe_folder() / name) if path.is_file()), None)
    if path is None:
        raise UserError(f"--config {name}: no such file, and no recipe of that name; recipes are {', '.join(recipes())}")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"--config {name}: not a text file; if it is a checkpoint, give it as --ckpt_path") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"--config {name}{line}: not YAML ({error.problem}); mend that line") from error
    except (yaml.YAMLError, OSError) as error:
        raise UserError(f"--config {name}: cannot be read ({sentence(str(error))}); mend the file") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {name}: holds no keys; a config looks like what cir fit --config emoji.yaml --print_config prints")
    data = content.get("data")
    arguments = data.get("init_args") if isinstance(data, dict) else None
    if isinstance(arguments, dict) and "seed" in arguments:
        raise UserError(f"--config {name}: data.init_args.seed={arguments['seed']} {ONE_SEED}")
    return str(path)


def resolve(argv: list[str]) -> list[str]:
    """Recipes by name, checkpoints by run folder, the checkpoint's own config where no ``--config`` is given; configs first: flags win."""
    configs: list[str] = []
    flags: list[str] = []
    checkpoint: Path | None = None
    rest = iter(argv[1:])
    for word in rest:
        option, equals, value = word.partition("=")
        if option in {"--data.seed", "--data.init_args.seed"}:
            raise UserError(f"{option} {ONE_SEED}")
        if option not in VALUES:
            flags.append(word)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("--"):
            raise UserError(f"{option} needs a value: {VALUES[option]}")
        if option == "--ckpt_path" and is_exported(Path(value)):
            raise UserError(
                f"--ckpt_path {value}: cir export wrote this folder, which is no checkpoint of a run; give the run folder, or a config of "
                f"the same encoder and --model.init_from {value}"
            )
        if option == "--ckpt_path":
            checkpoint = find_checkpoint(Path(value), *(["last.ckpt"] if argv[0] == "fit" else []))
        else:
            configs += ["--config", find_config(value)]
    if checkpoint:
        checkpoint = usable_checkpoint(checkpoint)
        flags += ["--ckpt_path", str(checkpoint)]
        configs = configs or stored_config(checkpoint, argv[0])
    return [argv[0], *configs, *flags]


def without_secrets(config: str) -> tuple[str, list[str]]:
    """A run's config as it may be kept, and the keys below ``trainer`` that are left out as they look like passwords."""
    content = yaml.safe_load(config)
    removed = list(_remove_secrets(content["trainer"], "trainer"))
    return (yaml.safe_dump(content, sort_keys=False) if removed else config), removed


def _remove_secrets(part: Any, place: str) -> Iterator[str]:
    if isinstance(part, list):
        for at, item in enumerate(part):
            yield from _remove_secrets(item, f"{place}.{at}")
    if isinstance(part, dict):
        for key, value in list(part.items()):
            if value and (SECRET.search(str(key)) or (isinstance(value, str) and LOGIN.search(value))):
                del part[key]
                yield f"{place}.{key}"
            else:
                yield from _remove_secrets(value, f"{place}.{key}")


def stored_config_rules(argv: list[str]) -> bool:
    """Whether the config is that of a checkpoint, as no other is given."""
    options = {word.partition("=")[0] for word in argv}
    return "--ckpt_path" in options and not options & {"--config", "-c"}


def stored_config(checkpoint: Path, command: str) -> list[str]:
    """The words that give the parser a checkpoint's own config; none for ``last``, whose folder only a config can name.

    A run that was trained on a cluster is scored by one process anywhere: only ``fit`` takes over how many machines and devices there were.
    """
    if str(checkpoint) == "last":
        return []
    config = parse_config(read_checkpoint(checkpoint)[CONFIG_KEY], checkpoint)
    if command != "fit":
        config["trainer"] = {**config.get("trainer", {}), "num_nodes": 1, "devices": 1, "strategy": "auto"}
    return ["--config", yaml.safe_dump({key: value for key, value in config.items() if key != "ckpt_path"})]
