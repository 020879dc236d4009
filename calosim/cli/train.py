"""The training verbs of the ``calosim`` command: LightningCLI with self-explaining run folders."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from functools import cache
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO

from calosim.cli.errors import one_line
from calosim.cli.record import PredictionFile, RunCheckpoint, RunRecord, WholeCheckpoints
from calosim.cli.requeue import Requeue
from calosim.cli.session import (
    NAMED,
    as_list,
    check_resumed,
    checkpoint_to_use,
    elsewhere,
    folder_of,
    named_checkpoint,
    newest,
    said_words,
    say_replaced,
    single_batches,
    take_processes,
)
from calosim.cli.words import MODELS
from calosim.data.datamodule import RootDataModule
from calosim.io import expanded, shipped_config, shipped_words
from calosim.loggers import wandb_offline_where_needed

# So that `--model Teacher` finds them by their short names.
from calosim.models import Acceptance, CalosimModule, FineTune, PhotonSum, Student, Teacher  # noqa: F401
from calosim.models.checkpoints import read_checkpoint
from calosim.models.optim import WarmupCosine  # noqa: F401
from calosim.runs import Run
from calosim.slurm import forget

__all__ = ["CalosimCLI", "resolved", "train"]

#: The two checkpoints of every run. The last has a callback of its own: `save_last` with a monitor only writes when the
#: loss improves.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "best": {"monitor": "val/loss", "mode": "min", "filename": "best", "enable_version_counter": False},
    "last": {"filename": "last", "save_on_train_epoch_end": True, "enable_version_counter": False},
}
#: Run folders that this process has claimed.
HELD: list[tuple[Run, int]] = []
#: What wrong options do to a parser: it raises, rather than to print all that it knows.
REFUSING = {"exit_on_error": False}


class CalosimCLI(LightningCLI):
    """LightningCLI with a run folder, two checkpoints and ``--quiet``; the detector is named once, in ``--data.detector``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options and links the detector."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Run folder; by default runs/<model>/<date>-<time>-<id>, new for every run.",
        )
        parser.add_argument("--quiet", type=bool, nargs="?", const=True, default=False, help="Show no progress.")
        for name, settings in CHECKPOINTS.items():
            parser.add_lightning_class_args(RunCheckpoint, name)
            parser.set_defaults({f"{name}.{key}": value for key, value in settings.items()})
        parser.link_arguments("data.detector", "model.init_args.detector")

    def _parse_ckpt_path(self) -> None:
        """Nothing: what a checkpoint says of its model must not override files and command line."""

    def before_instantiate_classes(self) -> None:
        """Chooses and claims the run folder, and puts logs, checkpoints and pictures into it.

        Raises:
            ValueError: If the folder holds another run, another process trains there, or a training cannot be resumed so.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        for key, value in expanded(dict(config)).items():
            config[key] = value
        say_replaced(config)
        #: The settings as they were asked for, which can be run again, in another folder too.
        self.asked = config.clone()
        self.asked.run = self.asked.ckpt_path = None
        self.asked.trainer.plugins = elsewhere(config.trainer.get("plugins"))
        self.singles = single_batches(config, sys.argv[1:])
        for name, single in self.singles.items():
            self.asked.trainer[name] = single
        # A run's own configuration has null here, and must not take away what was named before it.
        checkpoint = config.ckpt_path = config.get("ckpt_path") or named_checkpoint(sys.argv[1:])
        take_processes(config)
        run = Run(folder_of(str(self.subcommand), config, checkpoint))
        if self.subcommand == "fit" and (found := newest(run)):
            config.ckpt_path = checkpoint = found
        # Processes that Lightning launches repeat the command line; they inherit the folder by the environment.
        os.environ["CALOSIM_RUN"] = config.run = config.trainer.default_root_dir = str(run.folder)
        # Processes that Lightning launches inside of a job's task share its SLURM_PROCID.
        first = all(int(os.environ.get(name, 0)) == 0 for name in ("SLURM_PROCID", "RANK", "LOCAL_RANK"))
        if self.subcommand == "fit" and first:
            self._enter(run, checkpoint)
        if checkpoint in NAMED:
            config.ckpt_path = checkpoint_to_use(run, checkpoint)
        elif checkpoint:
            read_checkpoint(checkpoint)  # a damaged one is named
        # A progress bar redraws itself: in a log that is a line for every batch.
        if config.get("quiet"):
            os.environ["TQDM_DISABLE"] = "1"
        if config.get("quiet") or (config.trainer.get("enable_progress_bar") is None and not sys.stdout.isatty()):
            config.trainer.enable_progress_bar = False
        self._place(config, run)

    def _enter(self, run: Run, checkpoint: str | None) -> None:
        """Claims the folder of a training, and refuses what would mix two of them."""
        HELD.append((run, run.claim()))
        origin = run if checkpoint in (None, *NAMED) else Run(checkpoint)
        if not run.exists and checkpoint is None and any((run / Run.CHECKPOINTS).glob("*.ckpt")):
            raise ValueError(f"{run.folder}: holds checkpoints and no {Run.RECORD}; choose another --run")
        if run.exists and (checkpoint is None or origin.folder.resolve() != run.folder.resolve()):
            if not run.begun_only:
                raise ValueError(
                    f"{run.folder}: holds a run already; choose another --run, or resume it with --ckpt_path last"
                )
            print(f"calosim: {run.folder}: begun before, without a checkpoint; starts anew", file=sys.stderr)
            run.clear()
        if checkpoint is not None and origin.exists:
            settings = yaml.safe_load(self._parser("fit").dump(self.asked, skip_none=False))
            check_resumed(origin, settings)
        run.join_metrics()  # of sessions that were killed

    def after_fit(self) -> None:
        """Puts what a resumed session logged where the first one's is; a killed one's is put there by the next."""
        if self.trainer.is_global_zero:
            Run(self.trainer.default_root_dir).join_metrics()

    def _place(self, config: Any, run: Run) -> None:
        """Points loggers and further checkpoint callbacks at the run folder; leaves out what has nothing to work with."""
        trainer, loggers = config.trainer, as_list(config.trainer.get("logger"))
        for logger in loggers:
            if logger.class_path.endswith("MLflow"):  # all runs are in one place, which need not be here
                logger.init_args.run_id = logger.init_args.get("run_id") or run.mlflow
                logger.init_args.run_name = logger.init_args.get("run_name") or str(run.folder)
            elif "save_dir" in logger.get("init_args", {}):
                logger.init_args.save_dir = str(run.folder)
            if logger.class_path.endswith("CSVLogger") and (run / Run.METRICS).exists():
                # CSVLogger starts its file anew; what was logged before must stay.
                logger.init_args.version = f"{self.subcommand}-{len(list(run.folder.glob(f'{self.subcommand}-*'))) + 1}"
            if logger.class_path.endswith("WandbLogger") and self.subcommand == "fit":
                logger.init_args.id = logger.init_args.get("id") or run.wandb
        for callback in as_list(trainer.get("callbacks")):
            name = callback.class_path.rpartition(".")[2]
            if name == "ModelCheckpoint" and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = str(run / Run.CHECKPOINTS)
            # No logger, no learning rates to write down; no progress, no bar of one's own.
            idle = name == "LearningRateMonitor" and trainer.get("logger") is False
            if idle or (name.endswith("ProgressBar") and trainer.get("enable_progress_bar") is False):
                trainer.callbacks = [other for other in as_list(trainer.callbacks) if other is not callback]
        if any("Wandb" in logger.class_path for logger in loggers):
            wandb_offline_where_needed()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, which writes checkpoints whole or not at all; without the two where it is told to write none."""
        given = self._get(self.config_init, "trainer", {})
        if given.get("enable_checkpointing") is False:
            parser = self._parser(self.subcommand)
            parser.callback_keys = [key for key in parser.callback_keys if key not in CHECKPOINTS]
        plugins = given.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, WholeCheckpoints()]
        if self.subcommand:
            self.config[self.subcommand] = self.asked  # what the run's record keeps
        trainer = super().instantiate_trainer(plugins=plugins, **self.singles, **kwargs)
        trainer.callbacks.sort(key=lambda callback: isinstance(callback, Requeue))  # type: ignore[attr-defined]
        return trainer


def train(argv: list[str]) -> None:
    """Runs fit, validate, test or predict."""
    # Lightning 2.6 calls what torch 2.13 deprecates and advertises a logger at every start: not the user's doing.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # `deterministic` otherwise also fills all fresh memory with NaN, which costs time and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # A folder of its own is chosen below where one holds metrics already.
    warnings.filterwarnings("ignore", message="Experiment logs directory")
    for name in ("utilities.rank_zero", "trainer.connectors.signal_connector", "loggers.mlflow"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_worth_a_line)
    os.environ.pop("CALOSIM_RUN", None) if "LOCAL_RANK" not in os.environ else None
    # Processes that Lightning launches repeat sys.argv, and the run's record quotes it.
    sys.argv[1:] = shipped_words(said_words(argv))
    try:
        CalosimCLI(
            model_class=CalosimModule,
            datamodule_class=RootDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            save_config_callback=RunRecord,
            trainer_defaults={"callbacks": [PredictionFile(), Requeue()]},
            parser_kwargs={
                **REFUSING,
                "prog": "calosim",
                **{verb: {**REFUSING, **_defaults()} for verb in ("fit", "validate", "test", "predict")},
            },
        )
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning ends an interrupted process by itself.
        if HELD and KeyboardInterrupt in (type(error), type(error.__context__)):
            raise KeyboardInterrupt(_way_on(HELD[0][0])) from None
        raise
    except OSError as error:
        if HELD and error.filename is None:  # such as a full disk, in what Lightning logs
            raise ValueError(f"{HELD[0][0].folder}: cannot be written ({error.strerror or error})") from error
        raise
    finally:
        forget()
        while HELD:
            run, handle = HELD.pop()
            run.release(handle)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether what Lightning logs is news: not its advertisement, a new experiment, nor a signal of which we speak ourselves."""
    words = ("litlogger", "not found. Creating it", "KeyboardInterrupt", "Received SIGTERM")
    return not any(each in str(record.msg) for each in words)


def _way_on(run: Run) -> str:
    """How a training that was ended goes on, in words."""
    if (run / Run.TRAINING).exists():
        return f"{run.folder} is finished"
    return f"{run.folder} goes on with --ckpt_path last" if run.last.exists() else "no epoch was finished"


def _defaults() -> dict[str, Any]:
    """Where every verb takes its defaults from, and what its help ends with."""
    models = f"Models for --model: {', '.join(MODELS)}; `--model.help NAME` explains one."
    return {"default_config_files": [str(shipped_config("base.yaml"))], "epilog": models}


class _Ready(Exception):
    """Ends a command that has its parser, and takes no arguments yet."""


class _FitParser(CalosimCLI):
    """The command ``fit`` up to its parser."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Training alone."""
        return {"fit": CalosimCLI.subcommands()["fit"]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Ends.

        Raises:
            _Ready: With the command.
        """
        raise _Ready(self)


@cache
def _fit_parser() -> CalosimCLI:
    try:
        return _FitParser(
            model_class=CalosimModule,
            datamodule_class=RootDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            parser_kwargs={**REFUSING, "fit": {**REFUSING, **_defaults()}},
        )
    except _Ready as ready:
        return ready.args[0]


def resolved(words: list[str]) -> dict[str, Any]:
    """All settings of ``calosim fit WORDS``, as its run's record will have them, without training.

    Raises:
        ValueError: If the command would refuse them.
    """
    parser = _fit_parser()._parser("fit")
    try:
        config = parser.parse_args(shipped_words(said_words(words)))
    except ArgumentError as error:
        raise ValueError(one_line(str(error))) from None
    return yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))  # it has been validated
