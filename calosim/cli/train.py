"""The training verbs of the ``calosim`` command: LightningCLI with self-explaining run folders."""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
import warnings
from functools import cache
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from calosim.cli.record import PredictionFile, RunCheckpoint, RunRecord
from calosim.files import shipped_config, shipped_words
from calosim.loggers import wandb_offline_without_key

# So that `--model Teacher` finds them by their short names.
from calosim.models import CalosimModule, FineTune, PhotonSum, Student, Teacher  # noqa: F401
from calosim.models.schedules import WarmupCosine  # noqa: F401
from calosim.runs import Run
from calosim.showers.datamodule import RootDataModule

__all__ = ["CalosimCLI", "resolved", "train"]

#: The two checkpoints of every run. The last has a callback of its own: `save_last` with a monitor only writes when the
#: loss improves.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "best": {"monitor": "val/loss", "mode": "min", "filename": "best", "enable_version_counter": False},
    "last": {"filename": "last", "enable_version_counter": False},
}


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

    def before_instantiate_classes(self) -> None:
        """Chooses the run folder and puts logs, checkpoints and pictures into it.

        Raises:
            ValueError: If the folder holds another run that is not being resumed.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        checkpoint = config.get("ckpt_path")
        run = Run(self._folder(config, checkpoint))
        first = int(os.environ.get("SLURM_PROCID", os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))) == 0
        if self.subcommand == "fit" and not checkpoint and first and run.exists:
            raise ValueError(
                f"{run.folder}: holds a run already; choose another --run, or resume it with --ckpt_path last"
            )
        # Processes that Lightning launches repeat the command line; they inherit the folder by the environment.
        os.environ["CALOSIM_RUN"] = config.run = config.trainer.default_root_dir = str(run.folder)
        # A progress bar redraws itself: in a log that is a line for every batch.
        if config.get("quiet"):
            os.environ["TQDM_DISABLE"] = "1"
        if config.get("quiet") or (config.trainer.get("enable_progress_bar") is None and not sys.stdout.isatty()):
            config.trainer.enable_progress_bar = False
        self._place(config, run)
        if checkpoint in ("best", "last"):
            config.ckpt_path = str(getattr(run, checkpoint))

    def _folder(self, config: Any, checkpoint: str | None) -> str:
        """The run folder: the one that was named, that of the checkpoint, or a new one."""
        run = config.get("run") or os.environ.get("CALOSIM_RUN")
        if self.subcommand != "fit" and not checkpoint:
            raise ValueError(
                f"expected --ckpt_path, a checkpoint to {self.subcommand}; without one the weights are random"
            )
        if run is not None:
            return run
        if checkpoint in ("best", "last"):
            raise ValueError(
                f"expected --run RUN_FOLDER, whose {checkpoint} checkpoint is meant, or the path of a checkpoint"
            )
        if checkpoint is not None:
            # Judging or resuming a checkpoint belongs to the run that wrote it.
            return str(Run(checkpoint).folder)
        model = config.model.class_path.rpartition(".")[2].lower()
        # Under Slurm all processes must choose the same folder without talking to each other.
        if job := os.environ.get("SLURM_JOB_ID"):
            return f"runs/{model}/slurm-{job}"
        return f"runs/{model}/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"

    def _place(self, config: Any, run: Run) -> None:
        """Points loggers and further checkpoint callbacks at the run folder."""
        loggers = _as_list(config.trainer.get("logger"))
        for logger in loggers:
            if "save_dir" in logger.get("init_args", {}):
                logger.init_args.save_dir = str(run.folder)
            if logger.class_path.endswith("CSVLogger") and (run / Run.METRICS).exists():
                # CSVLogger starts its file anew; what was logged before must stay.
                logger.init_args.version = f"{self.subcommand}-{len(list(run.folder.glob(f'{self.subcommand}-*'))) + 1}"
        for callback in _as_list(config.trainer.get("callbacks")):
            if callback.class_path.endswith("ModelCheckpoint") and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = str(run / Run.CHECKPOINTS)
        if any("Wandb" in logger.class_path for logger in loggers):
            wandb_offline_without_key()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer; without the two checkpoints where ``--trainer.enable_checkpointing false`` says so."""
        if self._get(self.config_init, "trainer", {}).get("enable_checkpointing") is False:
            parser = self._parser(self.subcommand)
            parser.callback_keys = [key for key in parser.callback_keys if key not in CHECKPOINTS]
        return super().instantiate_trainer(**kwargs)


def _as_list(value: Any) -> list[Any]:
    if not value or value is True:
        return []
    return [v for v in (value if isinstance(value, list) else [value]) if hasattr(v, "get") and v.get("class_path")]


def train(argv: list[str]) -> None:
    """Runs fit, validate, test or predict."""
    # Lightning 2.6 calls what torch 2.13 deprecates and advertises a logger at every start: not the user's doing.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # `deterministic` otherwise also fills all fresh memory with NaN, which costs time and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # A folder of its own is chosen below where one holds metrics already.
    warnings.filterwarnings("ignore", message="Experiment logs directory")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    os.environ.pop("CALOSIM_RUN", None) if "LOCAL_RANK" not in os.environ else None
    # Processes that Lightning launches repeat sys.argv, and the run's record quotes it.
    sys.argv[1:] = shipped_words(argv)
    CalosimCLI(
        model_class=CalosimModule,
        datamodule_class=RootDataModule,
        subclass_mode_model=True,
        save_config_callback=RunRecord,
        trainer_defaults={"callbacks": [PredictionFile()]},
        parser_kwargs=dict.fromkeys(("fit", "validate", "test", "predict"), _defaults()),
    )


def _defaults() -> dict[str, Any]:
    """Where every verb takes its defaults from."""
    return {"default_config_files": [str(shipped_config("base.yaml"))]}


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
    refusing = {"exit_on_error": False}
    try:
        return _FitParser(
            model_class=CalosimModule,
            datamodule_class=RootDataModule,
            subclass_mode_model=True,
            parser_kwargs={**refusing, "fit": {**refusing, **_defaults()}},
        )
    except _Ready as ready:
        return ready.args[0]


def resolved(words: list[str]) -> dict[str, Any]:
    """All settings of ``calosim fit WORDS``, as its run's record will have them, without training.

    Raises:
        ValueError: If the command would refuse them.
    """
    command = _fit_parser()
    try:
        config = command.parser.parse_args(shipped_words(["fit", *words]))
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return yaml.safe_load(command._parser("fit").dump(config["fit"], skip_none=False))
