"""LightningCLI for composed image retrieval: recipes by name, the config inside the checkpoint, one folder per run."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from cir_lightning.arguments import Parser, resolve, sentence, stored_config_rules, without_secrets
from cir_lightning.backbones.mini import quiet_transformers
from cir_lightning.callbacks import RunLog, RunProgress, standard_callbacks
from cir_lightning.checkpoint import LAST, PREVIOUS, read_checkpoint, usable_checkpoint
from cir_lightning.checkpoint_io import CheckpointFiles
from cir_lightning.distributed import lost_others
from cir_lightning.guards import OnNonfinite
from cir_lightning.module import CIRModule
from cir_lightning.storage import replace_file
from cir_lightning.trust import known_classes
from data_modules.base import CIRDataModule
from data_modules.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.cli import LightningArgumentParser

NOISE = (  # warnings about what is meant to be so
    "LeafSpec",
    "is_gradient_checkpointing",
    "does not have many workers",
    "args parameter is intended",
    "in eval mode at the start",
    "Be aware that when using `ckpt_path`",
    "You are using a custom batch sampler",
    "predict returned None",
    "It is recommended to use `self.log",  # figures are the same on every process
    "Checkpoint directory .* exists",
    "The dirpath has changed",
    "You're resuming from a checkpoint that ended before the epoch ended",
)

WHOLE = ("limit_val_batches", "limit_test_batches", "limit_predict_batches")
NOT_ZERO = ("max_steps", "max_epochs", "limit_train_batches")


class EmbedConfig(SaveConfigCallback):
    """Writes the config into the run folder and into every checkpoint."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module the config for its checkpoints, so that ``cir test --ckpt_path X`` needs nothing else."""
        pl_module.restores = self.config.ckpt_path is not None  # type: ignore[assignment]
        self.text, left_out = without_secrets(self.parser.dump(self.config, skip_unset=False))
        pl_module.run_config = self.text  # type: ignore[assignment]
        if left_out and stage == "fit" and trainer.is_global_zero:
            print(f"not kept in config.yaml and checkpoints, as they may be secrets: {', '.join(left_out)}; give them again to go on")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """``config.yaml`` in the run folder, once nothing refuses the run any more."""
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "config.yaml"
            replace_file(path, lambda part: part.write_text(self.text, encoding="utf-8"))


class CIRCLI(LightningCLI):
    """fit, validate, test and predict."""

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed: a number, where Lightning would also take true and false."""
        parser.add_argument("--seed_everything", type=int, default=self.seed_everything_default, help="seed of weights and data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for the weights and for the data; what is to be done about gradients that are no numbers."""
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.add_argument("--on_nonfinite", type=OnNonfinite, default="stop", help="what a batch does whose gradient is no number")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """With ``cir predict --split``."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            what = "what is ranked; where only a server knows the answers to test, those to val are known, for cir analyze failures"
            parser.add_argument("--split", type=Literal["test", "val"], default="test", help=what)
        return parser

    def instantiate_classes(self) -> None:
        """Tell the data which split ``cir predict`` is asked for."""
        super().instantiate_classes()
        if self.subcommand == "predict":
            self.datamodule.predicts = self.config[self.subcommand].split

    def _parse_ckpt_path(self) -> None:
        """Nothing: the stored config is in ``--config``, and explicit flags must win (Lightning pull request 21455)."""

    def _set_seed(self) -> None:
        """Refuse a number that is no seed before Lightning does."""
        if not 0 <= (seed := self.config[self.subcommand].seed_everything) < 2**32:
            raise UserError(f"seed_everything={seed} is no seed; give a whole number from 0 to {2**32 - 1}")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Resolve ``--ckpt_path last``; refuse what would score nothing, train nothing, or train into a folder that holds a run."""
        config = self.config[self.subcommand]
        if "verbose" in config:
            config.verbose = False  # Lightning's own table, once per loader; ours says more
        refuse_part_of_a_run(config.trainer)
        folder = Path(config.trainer.default_root_dir or "runs/unnamed") / "checkpoints"
        config.trainer.default_root_dir = str(folder.parent)
        goes_on = config.ckpt_path == "last"
        if goes_on:
            config.ckpt_path = self._last(folder)
        if config.ckpt_path:
            checkpoint = read_checkpoint(Path(config.ckpt_path))
            if self.subcommand == "fit":
                refuse_to_go_on(checkpoint, config.ckpt_path, config.trainer.max_steps)
            config.model.init_from = None  # the checkpoint has all that was trained
        elif self.subcommand == "predict" and not config.model.init_from:
            raise UserError("cir predict would rank with random weights; give --ckpt_path runs/NAME, or weights with --model.init_from")
        elsewhere = not goes_on and (not config.ckpt_path or Path(config.ckpt_path).resolve().parent != folder.resolve())
        if self.subcommand == "fit" and elsewhere and any(folder.glob("*.ckpt")):
            raise UserError(
                f"run folder {folder.parent} already holds a run; go on with it by --ckpt_path last, or name another folder with "
                "--trainer.default_root_dir"
            )

    def _last(self, folder: Path) -> str | None:
        """The run's last checkpoint; none for a training that has not got that far, as when a cluster starts a job again."""
        if self.subcommand == "fit" and not any((folder / name).exists() for name in (LAST, PREVIOUS)):
            print(f"--ckpt_path last: there is no checkpoint in {folder} yet; the run starts from its beginning")
            return None
        return str(usable_checkpoint(folder / LAST))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with TensorBoard in the run folder and the callbacks that every run has."""
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir)
        fits, ours = self.subcommand == "fit", config.trainer.logger in (None, True)
        if ours or not fits:
            kwargs["logger"] = False
        self.trainer_defaults["callbacks"] = [
            *standard_callbacks(
                str(self.subcommand), root, config.ckpt_path, config.model.init_from, config.model.monitor, config.on_nonfinite
            ),
            *([] if config.trainer.enable_progress_bar is False else [RunProgress(refresh_rate=5)]),
            *([RunLog(root)] if fits and ours else []),
            *([LearningRateMonitor("step")] if fits and config.trainer.logger is not False else []),
        ]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, RuntimeError) as error:  # Lightning's own checks of its arguments
            raise UserError(f"the trainer cannot be made: {sentence(str(error))}; see the keys under trainer") from error
        trainer.strategy.checkpoint_io = CheckpointFiles()
        return trainer


def refuse_part_of_a_run(trainer: Namespace) -> None:
    """Refuse options of Lightning's trainer that leave galleries incomplete, or train nothing.

    Raises:
        UserError: one is set.
    """
    limited = [key for key in WHOLE if trainer[key] is not None and not (isinstance(trainer[key], float) and trainer[key] == 1)]
    for key in (*limited, *(key for key in ("fast_dev_run", "overfit_batches") if trainer[key])):
        raise UserError(f"trainer.{key}={trainer[key]}: a gallery must be whole; leave it out, and use --trainer.max_steps for a quick try")
    for key in NOT_ZERO:
        if trainer[key] == 0:
            raise UserError(f"trainer.{key}=0 would train nothing; set it to 1 or more, or leave it out")


def refuse_to_go_on(checkpoint: dict[str, Any], path: str, max_steps: int) -> None:
    """Refuse a checkpoint that training cannot go on with.

    Raises:
        UserError: it has weights alone, or its run is finished.
        SystemExit: its run is finished, and Slurm has started the job once more, as after the loss of a node: all is well.
    """
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"--ckpt_path {path}: training cannot go on with weights alone; use last.ckpt, or start a new run from them with "
            f"--model.init_from {path}"
        )
    if 0 <= max_steps <= (done := checkpoint.get("global_step", 0)):
        if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            print(f"--ckpt_path {path}: all of {done} steps are done already")
            raise SystemExit(0)
        raise UserError(
            f"--ckpt_path {path}: {done} steps are done already, and trainer.max_steps is {max_steps}; set it higher to go on, or score "
            "what there is with cir validate or cir test"
        )


class Parsed(CIRCLI):
    """Parses what ``cir fit`` does, makes the model and the data module, and leaves it at that: no trainer, no weights, no folder."""

    def before_instantiate_classes(self) -> None:
        """Nothing is going to be run."""

    def _set_seed(self) -> None:
        """Nothing is going to be random."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def run(argv: list[str], kind: type[CIRCLI] = CIRCLI) -> CIRCLI | None:
    """Run one command of the front door.

    Args:
        argv: the command and its options.
        kind: what is done with them.

    Returns:
        What has run; None where only help or the configuration was asked for.

    Raises:
        UserError: a mistake that the user can mend.
    """
    _quiet()
    try:
        with known_classes() if stored_config_rules(argv) else nullcontext():
            cli = kind(
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
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(f"cannot use {error.filename}: {error.strerror}; name another folder with --trainer.default_root_dir") from error
    except RuntimeError as error:
        if lost := lost_others(error):
            raise UserError(lost) from error
        raise
    except ValueError as error:
        raise (_user_error_below(error) or error) from error.__cause__
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # Lightning tidies up and leaves with 1
            raise KeyboardInterrupt from left
        if left.code not in (0, None):
            raise
        cli = None
    sys.stdout.flush()
    return cli


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
