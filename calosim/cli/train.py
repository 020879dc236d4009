"""The trainings of the ``calosim`` command: LightningCLI with run folders that explain themselves and can be gone on with."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from calosim.cli.parser import ConfigFile, parse
from calosim.cli.record import PredictionFile, Requeue, RunCheckpoint, RunRecord, WholeCheckpoints
from calosim.data.datamodule import RootDataModule
from calosim.io import expanded, shipped_config
from calosim.loggers import wandb_offline_where_needed
from calosim.models import CalosimModule  # from there, with all kinds, so that `--model Teacher` finds them
from calosim.models.checkpoints import MODULES, read_checkpoint
from calosim.models.optim import WarmupCosine  # noqa: F401
from calosim.runs import Run, difference, identity
from calosim.slurm import forget, own_job, starts_again

__all__ = ["CalosimCLI", "parsed", "resolved", "train"]

#: The two checkpoints of every run. The last has a callback of its own: `save_last` with a monitor only writes when the
#: loss improves.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "best": {"monitor": "val/loss", "mode": "min", "filename": "best", "enable_version_counter": False},
    "last": {"filename": "last", "save_on_train_epoch_end": True, "enable_version_counter": False},
}
#: Checkpoints of a run that have a name.
NAMED = ("best", "last", "hpc")
#: Settings that a resumed training may not change: Lightning would go on with the old ones, or with other rows.
FIXED = ("model.", "data.", "seed_everything")
#: Among them what is obeyed, or told by content: places of runs and files.
FREE = ("model.init_args.init_from", "model.init_args.start", "data.batch_size")
#: Run folders that this process has claimed.
HELD: list[tuple[Run, int]] = []


class _Ready(Exception):
    """Ends a command that has its parser, and no words to parse."""


class CalosimCLI(LightningCLI):
    """LightningCLI with a run folder, two checkpoints and ``--quiet``; the detector is named once, in ``--data.detector``.

    Args:
        subcommand: fit, validate, test or predict.
        words: Its options; None to have the parser alone, in a :class:`_Ready`.
    """

    def __init__(self, subcommand: str, words: Sequence[str] | None):
        self.only, self.words = subcommand, words
        super().__init__(
            model_class=CalosimModule,
            datamodule_class=RootDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            save_config_callback=RunRecord,
            save_config_kwargs={"command": [subcommand, *(words or ())]},
            trainer_defaults={"callbacks": [PredictionFile(), Requeue()]},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is run."""
        return {self.only: LightningCLI.subcommands()[self.only]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises, rather than to print all that it knows, and reads configuration files as tools do."""
        models = f"Models for --model: {', '.join(MODULES)}; `calosim {self.only} --model.help NAME` explains one."
        parser = self.parser_class(
            **kwargs,
            prog=f"calosim {self.only}",
            usage=f"calosim {self.only} -c FILE [options]",
            epilog=models,
            exit_on_error=False,
            allow_abbrev=False,
            default_config_files=[str(shipped_config("base.yaml"))],
        )
        parser.add_argument(
            "-c", "--config", action=ConfigFile, metavar="FILE", help="YAML file of options; later ones win."
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options and links the detector."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Run folder; by default runs/<model>/<date>-<time>-<id>, new for every run.",
        )
        parser.add_argument("--quiet", type=bool, default=False, help="Show no progress.")
        for name, settings in CHECKPOINTS.items():
            parser.add_lightning_class_args(RunCheckpoint, name)
            parser.set_defaults({f"{name}.{key}": value for key, value in settings.items()})
        parser.link_arguments("data.detector", "model.init_args.detector")
        for action in parser._actions:
            if action.dest == "model":
                action.help = f"-c conf/teacher.yaml, for instance, or --model with {', '.join(MODULES)}"
            kinds = get_args(getattr(action, "_typehint", None))
            if {int, float} <= set(kinds) and kinds.index(float) < kinds.index(int):
                # Whole numbers are tried first: 1 is one batch, 1.0 all of them.
                action._typehint = int | float | None if type(None) in kinds else int | float  # type: ignore[attr-defined]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the words of the subcommand.

        Raises:
            _Ready: With the parser, if there are none.
        """
        own = self._parser(self.only)
        if self.words is None:
            raise _Ready(own)
        outer = vars(own).pop("parent_parser")  # which alone would answer to --print_config
        self.config = Namespace({"subcommand": self.only, self.only: _parse(own, self.words)})
        vars(own)["parent_parser"] = outer

    def _parse_ckpt_path(self) -> None:
        """Nothing: what a checkpoint says of its model must not override files and command line."""

    def before_instantiate_classes(self) -> None:
        """Chooses and claims the run folder, and puts logs, checkpoints and pictures into it.

        Raises:
            ValueError: If the folder holds another run, another process trains there, or a training cannot be resumed so.
        """
        config = self.config[self.only]
        for key, value in expanded(dict(config)).items():
            config[key] = value
        say_replaced(config)
        #: The settings as they were asked for, which can be run again, in another folder too.
        self.asked = config.clone()
        self.asked.run = self.asked.ckpt_path = None
        self.asked.trainer.plugins = elsewhere(config.trainer.get("plugins"))
        checkpoint = config.get("ckpt_path")
        take_processes(config)
        run = Run(folder_of(self.only, config, checkpoint, self.words or ()))
        if self.only == "fit" and (found := newest(run)):
            config.ckpt_path = checkpoint = found
        # Processes that Lightning launches repeat the command line; they inherit the folder by the environment.
        os.environ["CALOSIM_RUN"] = config.run = config.trainer.default_root_dir = str(run.folder)
        if self.only == "fit" and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
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
            settings = yaml.safe_load(self._parser(self.only).dump(self.asked, skip_none=False))
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
                logger.init_args.version = f"{self.only}-{len(list(run.folder.glob(f'{self.only}-*'))) + 1}"
            if logger.class_path.endswith("WandbLogger") and self.only == "fit":
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
            parser = self._parser(self.only)
            parser.callback_keys = [key for key in parser.callback_keys if key not in CHECKPOINTS]
        plugins = given.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, WholeCheckpoints()]
        self.config[self.only] = self.asked  # what the run's record keeps
        trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
        trainer.callbacks.sort(key=lambda callback: isinstance(callback, Requeue))  # type: ignore[attr-defined]
        return trainer


def train(subcommand: str, words: Sequence[str]) -> None:
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
    try:
        CalosimCLI(subcommand, words)
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


@cache
def _parser(subcommand: str) -> LightningArgumentParser:
    try:
        CalosimCLI(subcommand, None)
    except _Ready as ready:
        return ready.args[0]
    raise AssertionError("a command without words has run")


def parsed(subcommand: str, words: Sequence[str]) -> Namespace:
    """The options of a training, without training.

    Raises:
        ValueError: If the command would refuse them.
    """
    return _parse(_parser(subcommand), words)


def _parse(parser: LightningArgumentParser, words: Sequence[str]) -> Namespace:
    for word in words:
        if word != word.encode("utf-8", "ignore").decode("utf-8"):
            raise ValueError(f"{word!a}: expected a name in UTF-8, which the settings of a run can hold")
    return parse(parser, words)


def resolved(words: Sequence[str]) -> dict[str, Any]:
    """All settings of ``calosim fit WORDS``, as its run's record will have them, without training.

    Raises:
        ValueError: If the command would refuse them.
    """
    config = parsed("fit", words)
    return yaml.safe_load(_parser("fit").dump(config, skip_none=False, skip_validation=True))  # it has been validated


# -- sessions ----------------------------------------------------------------------------------------------------------


def as_list(value: Any) -> list[Any]:
    """The classes that an entry of the trainer names, one or several."""
    if not value or value is True:
        return []
    return [v for v in (value if isinstance(value, list) else [value]) if hasattr(v, "get") and v.get("class_path")]


def folder_of(subcommand: str, config: Any, checkpoint: str | None, words: Sequence[str]) -> str:
    """The run folder: the one that was named, that of the checkpoint or of the configuration to go on from, or a new one.

    Raises:
        ValueError: If a checkpoint is needed and none is named, or none can be found.
    """
    run = config.get("run") or os.environ.get("CALOSIM_RUN")
    if subcommand != "fit" and not checkpoint:
        raise ValueError(f"expected --ckpt_path, a checkpoint to {subcommand}; without one the weights are random")
    if run is not None:
        return run
    if checkpoint in NAMED:
        # `-c RUN/config.yaml --ckpt_path last` goes on with that run, wherever it lies by now.
        files = [Path(file.path) for file in config.get("config") or []]
        own = [path.parent for path in files if path.name == Run.CONFIG and Run(path.parent).exists]
        if len(own) != 1:
            raise ValueError(
                f"expected --run RUN_FOLDER, whose {checkpoint} checkpoint is meant, or the path of a checkpoint"
            )
        return str(own[0])
    if checkpoint is not None:
        if subcommand == "fit" and not Run(checkpoint).exists:
            raise ValueError(f"{checkpoint}: lies in no run folder; expected --run RUN_FOLDER to go on in")
        # Judging or resuming a checkpoint belongs to the run that wrote it.
        return str(Run(checkpoint).folder)
    model = config.model.class_path.rpartition(".")[2].lower()
    if job := own_job():
        return _job_folder(f"runs/{model}/slurm-{job['job']}", [subcommand, *words])
    return f"runs/{model}/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def _job_folder(start: str, words: Sequence[str]) -> str:
    """The run folder of a training in a job, which must find it again when it starts again.

    The tasks of a step must choose the same one without talking to each other; hence the command's words tell it apart from
    the job's other trainings. The same command once more is a new training, unless the first is one to go on with.
    """
    name = f"{start}-{hashlib.sha256(repr(words).encode()).hexdigest()[:6]}"
    alone = "SLURM_STEP_ID" not in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) == 1
    for number in count(1):
        run = Run(name if number == 1 else f"{name}-{number}")
        if not alone and not run.training:
            break
        if run.exists and newest(run):
            break
        if alone:
            with suppress(FileExistsError):
                run.folder.mkdir(parents=True)
                break
    return str(run.folder)


def newest(run: Run) -> str | None:
    """The checkpoint that a run goes on from by itself; None if it does not.

    It does if this job has begun it, and starts again or was told to make room.
    """
    if not run.exists or run.job is None or run.job != own_job() or not (run.hpc or starts_again()):
        return None
    steps = {
        path: read_checkpoint(path).get("global_step", 0) for path in (run.hpc, run.last) if path and path.exists()
    }
    return str(max(steps, key=lambda path: steps[path])) if steps else None


def checkpoint_to_use(run: Run, name: str) -> str:
    """The path of a run's ``best``, ``last`` or ``hpc`` checkpoint; another one, with a line, where it is damaged.

    A training that was killed after the first ``best`` was written, and before ``last``, goes on from that one.

    Raises:
        ValueError: If there is none, or none that can be read.
    """
    wanted = {"best": run.best, "last": run.last, "hpc": run.hpc or run / "hpc_ckpt_1.ckpt"}[name]
    other = run.best if name == "last" else run.last
    missing = f"{wanted}: no such checkpoint"
    if not wanted.exists() and not (name == "last" and other.exists()):
        raise ValueError(f"{missing}; without one, `fit` starts anew in that folder")
    try:
        if not wanted.exists():
            raise ValueError(missing)
        read_checkpoint(wanted)
    except ValueError as error:
        if not other.exists():
            raise
        epoch = read_checkpoint(other).get("epoch", 0)
        print(f"calosim: {error}; {other}, after epoch {epoch + 1}, takes its place", file=sys.stderr)
        return str(other)
    return str(wanted)


def elsewhere(plugins: Any) -> Any:
    """The trainer's plugins but for Slurm's environment: what a run was asked for holds on other machines too.

    Raises:
        ValueError: If that environment is asked for where it is not: Lightning would look for its variables.
    """
    slurm = [plugin for plugin in as_list(plugins) if plugin.class_path.endswith("SLURMEnvironment")]
    if slurm and "SLURM_NTASKS" not in os.environ:
        raise ValueError(
            "SLURMEnvironment (conf/cluster/slurm.yaml): expected a task of Slurm, by srun or calosim submit"
        )
    if not slurm:
        return plugins
    return [plugin for plugin in plugins if plugin not in slurm] or None if isinstance(plugins, list) else None


def take_processes(config: Any) -> None:
    """Makes a training of the processes that torchrun has started, on however many nodes, rather than start others.

    Args:
        config: The subcommand's parsed settings.

    Raises:
        ValueError: If they have no folder in common: no one of them could tell the others which it chose.
    """
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or world == 1:
        return
    config.trainer.devices, config.trainer.num_nodes = local, world // local
    if not (config.get("run") or config.get("ckpt_path") or os.environ.get("CALOSIM_RUN")):
        raise ValueError(f"expected --run RUN_FOLDER, the same for all {world} processes that torchrun starts")


def check_resumed(run: Run, settings: Mapping[str, Any]) -> None:
    """Refuses to resume a training with other settings than it was begun with, which would not be obeyed.

    Args:
        run: The run, as it was begun.
        settings: All settings of the command that resumes it.

    Raises:
        ValueError: If one differs.
    """
    begun, asked = identity(run.config), identity(settings)
    both = [key for key in begun if key in asked and key.startswith(FIXED) and not key.startswith(FREE)]
    # What is null on one side is a class with settings on the other.
    absent = [
        key for key in {**begun, **asked} if key.startswith("model.") and _absent(key, begun) != _absent(key, asked)
    ]
    keys = [*both, *absent]
    if differs := difference({k: begun.get(k) for k in keys}, {k: asked.get(k) for k in keys}):
        raise ValueError(
            f"{run.folder}: begun with other settings, which a resumed training keeps (it has {differs}); "
            "leave them as they were, or start a new run"
        )


def _absent(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether flat settings have null where others have a class with this setting."""
    above = [key[:end] for end, letter in enumerate(key) if letter == "."]
    return any(settings.get(name, 0) is None for name in above)


def say_replaced(config: Any) -> None:
    """Says in a line which callbacks of a file are replaced by a later file or the command line."""
    kept = {callback.class_path.rpartition(".")[2] for callback in as_list(config.trainer.get("callbacks"))}
    for file in config.get("config") or []:
        trainer = file.settings.get("trainer") or {}
        entries = [entry for key in ("callbacks", "callbacks+") for entry in _listed(trainer.get(key))]
        paths = [entry.get("class_path", "") if isinstance(entry, dict) else str(entry) for entry in entries]
        if gone := [name for path in paths if (name := path.rpartition(".")[2]) not in kept]:
            print(f"calosim: {', '.join(gone)} of {file.path} is replaced by what comes after it", file=sys.stderr)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []
