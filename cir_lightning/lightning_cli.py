"""LightningCLI for composed image retrieval: recipes by name, the config inside the checkpoint, one folder per run."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from cir_lightning.backbones.mini import quiet_transformers
from cir_lightning.callbacks import RunLog, RunProgress, standard_callbacks
from cir_lightning.checkpoint import CONFIG_KEY, read_checkpoint
from cir_lightning.cli import recipe_folder
from cir_lightning.module import CIRModule
from cir_lightning.storage import replace_file
from data_modules.base import CIRDataModule
from data_modules.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

NOISE = (  # warnings about what is meant to be so
    "LeafSpec",
    "is_gradient_checkpointing",
    "does not have many workers",
    "args parameter is intended",
    "in eval mode at the start",
    "Be aware that when using `ckpt_path`",
    "You are using a custom batch sampler",
    "predict returned None",
    "Checkpoint directory .* exists",
    "The dirpath has changed",
    "You're resuming from a checkpoint that ended before the epoch ended",
)


HINT = "; cir COMMAND --help and --print_config show what there is"


class Parser(LightningArgumentParser):
    """A parser whose errors are one sentence, and that takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise instead of printing the usage and leaving.

        Raises:
            UserError: always.
        """
        text = sentence(str(ex or message)).removesuffix(HINT)
        raise UserError(text + HINT) from ex


def sentence(message: str, longest: int = 600) -> str:
    """Jsonargparse's message on one line; where it tried the members of a union, only what was wrong with the likeliest, the last."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    starts = [at + 1 for at, line in enumerate(lines) if line == "Errors:"]
    return " ".join(lines[starts[-1] :] if starts else lines[:3])[:longest]


def find_recipe(name: str) -> str:
    """A config file as given, or the recipe of that name that comes with the package.

    Raises:
        UserError: there is neither; the recipes are named.
    """
    if Path(name).is_file():
        return name
    if (shipped := recipe_folder() / name).is_file():
        return str(shipped)
    recipes = sorted(str(p.relative_to(recipe_folder())) for p in recipe_folder().rglob("*.yaml"))
    raise UserError(f"--config {name}: no such file, and no recipe of that name; recipes are {', '.join(recipes)}")


def resolve(argv: list[str]) -> list[str]:
    """Recipes by name, checkpoints by run folder, and the checkpoint's own config where no ``--config`` is given."""
    out = [argv[0]]
    checkpoint = None
    rest = iter(argv[1:])
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in {"--config", "-c", "--ckpt_path"}:
            out.append(word)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("--"):
            raise UserError(
                f"{option} needs a value: {'a run folder or a checkpoint file' if option == '--ckpt_path' else 'a recipe or a file'}"
            )
        if option == "--ckpt_path":
            value = checkpoint = _checkpoint_file(value)
        out += [option, value if option == "--ckpt_path" else find_recipe(value)]
    if checkpoint and checkpoint != "last" and not {"--config", "-c"} & set(out):
        config = yaml.safe_load(read_checkpoint(Path(checkpoint))[CONFIG_KEY])
        out[1:1] = ["--config", yaml.safe_dump({k: v for k, v in config.items() if k != "ckpt_path"})]
    return out


def _checkpoint_file(value: str) -> str:
    """A run folder means its best checkpoint, or its last one if it ended before it was ever validated."""
    if not Path(value).is_dir():
        return value
    best, last = (Path(value) / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    return str(last if last.is_file() and not best.is_file() else best)


class EmbedConfig(SaveConfigCallback):
    """Writes the config into the run folder and into every checkpoint."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Give the module the config for its checkpoints, so that ``cir test --ckpt_path X`` needs nothing else."""
        pl_module.restores = self.config.ckpt_path is not None  # type: ignore[assignment]
        self.text = pl_module.run_config = self.parser.dump(self.config, skip_unset=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """``config.yaml`` in the run folder, once nothing refuses the run any more."""
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "config.yaml"
            replace_file(path, lambda part: part.write_text(self.text, encoding="utf-8"))


class CIRCLI(LightningCLI):
    """fit, validate, test and predict."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for the weights and for the data."""
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the stored config is in ``--config``, and explicit flags must win (Lightning pull request 21455)."""

    def before_instantiate_classes(self) -> None:
        """Resolve ``--ckpt_path last``; refuse to train into a folder that holds a run."""
        config = self.config[self.subcommand]
        if "verbose" in config:
            config.verbose = False  # Lightning's own table, once per loader; ours says more
        folder = Path(config.trainer.default_root_dir or "runs/unnamed") / "checkpoints"
        config.trainer.default_root_dir = str(folder.parent)
        if config.ckpt_path == "last":
            config.ckpt_path = str(folder / "last.ckpt")
        if config.ckpt_path:
            read_checkpoint(Path(config.ckpt_path))
            config.model.init_from = None  # the checkpoint has all that was trained
        elsewhere = not config.ckpt_path or Path(config.ckpt_path).resolve().parent != folder.resolve()
        if self.subcommand == "fit" and elsewhere and any(folder.glob("*.ckpt")):
            raise UserError(
                f"run folder {folder.parent} already holds a run; go on with it by --ckpt_path last, or name another folder with "
                "--trainer.default_root_dir"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with TensorBoard in the run folder and the callbacks that every run has."""
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir)
        fits, ours = self.subcommand == "fit", config.trainer.logger in (None, True)
        if ours or not fits:
            kwargs["logger"] = False
        self.trainer_defaults["callbacks"] = [
            *standard_callbacks(str(self.subcommand), root, config.ckpt_path, config.model.monitor),
            *([] if config.trainer.enable_progress_bar is False else [RunProgress(refresh_rate=5)]),
            *([RunLog(root)] if fits and ours else []),
            *([LearningRateMonitor("step")] if fits and config.trainer.logger is not False else []),
        ]
        return super().instantiate_trainer(**kwargs)


def run(argv: list[str]) -> None:
    """Run one command of the front door.

    Raises:
        UserError: a mistake that the user can mend.
    """
    _quiet()
    try:
        CIRCLI(
            CIRModule,
            CIRDataModule,
            subclass_mode_data=True,
            save_config_callback=EmbedConfig,
            seed_everything_default=0,
            parser_class=Parser,
            trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
            args=resolve(argv),
        )
    except (ArgumentError, MisconfigurationException) as error:
        raise UserError(sentence(str(error))) from error
    except ImportError as error:
        raise UserError(f"package {error.name or error} is missing: {error}; install what constraints.txt names, see the README") from error
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(f"cannot use {error.filename}: {error.strerror}; name another folder with --trainer.default_root_dir") from error
    except ValueError as error:
        raise (_user_error_below(error) or error) from error.__cause__
    except SystemExit as left:
        if left.code not in (0, None):
            raise
    sys.stdout.flush()


def _user_error_below(error: BaseException | None) -> UserError | None:
    """The user's mistake that jsonargparse wrapped when a constructor raised it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _quiet() -> None:
    """Take advertisements and warnings about what is meant to be so out of the output."""
    quiet_transformers()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.getMessage())
    for message in NOISE:
        warnings.filterwarnings("ignore", message=f".*{message}")
