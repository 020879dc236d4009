"""The training verbs of the ``calosim`` command: LightningCLI with self-explaining run folders."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from calosim import __version__
from calosim.files import atomic_write
from calosim.models.base import CalosimModule
from calosim.runs import git_hash
from calosim.showers.datamodule import RootDataModule, describe

__all__ = ["CalosimCLI", "RunRecord", "train"]


class RunRecord(SaveConfigCallback):
    """Makes the run folder, and a log without a terminal, explain itself.

    Before training: the resolved ``config.yaml`` and ``run.json``. After it has come to its end: ``training.json`` with the
    time (of all sessions, if it was resumed) and the samples it took. Where no progress bar can be shown: a line an epoch.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any):
        super().__init__(parser, config, **{**kwargs, "save_to_log_dir": False})
        self._lines = not config.get("quiet")
        self._earlier, self._begin = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """The time of training and validation so far, in all sessions."""
        return self._earlier + time.perf_counter() - self._begin

    def state_dict(self) -> dict[str, Any]:
        """The time so far, for a resumed run to go on counting."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._earlier = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Starts the clock."""
        self._begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Prints the epoch's metrics where no progress bar does."""
        if trainer.progress_bar_callback is None and trainer.is_global_zero and self._lines:
            names = [key for key in trainer.callback_metrics if key in ("train/loss", "val/loss", "val/ws")]
            words = [f"{key} {float(trainer.callback_metrics[key]):.4g}" for key in sorted(names)]
            epoch, last = trainer.current_epoch + 1, trainer.max_epochs
            print(f"epoch {epoch} of {last}: {', '.join([*words, f'{self.seconds:.0f} s'])}", flush=True)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Writes ``training.json``, on one process; an interrupted training has none."""
        if trainer.interrupted or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows = min(len(data.rows("train")), trainer.num_training_batches * data.batch_size * trainer.world_size)
        record = {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(self.seconds, 3),
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "samples": rows * trainer.current_epoch,
        }
        atomic_write(Path(trainer.default_root_dir) / "training.json", json.dumps(record, indent=2) + "\n")

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes both files, on one process."""
        folder = Path(trainer.default_root_dir)
        if stage != "fit":
            return
        # What the run was started with stays; how it was resumed stands beside it.
        resumed = len(list(folder.glob("config*.yaml")))
        name = f"config.resumed-{resumed}.yaml" if resumed else "config.yaml"
        dumped = self.parser.dump(self.config, skip_none=False)
        atomic_write(folder / name, dumped)
        record = {
            "calosim": __version__,
            "torch": torch.__version__,
            "git": git_hash(),
            "command": sys.argv[1:],
            "seed": self.config.get("seed_everything"),
            "model": f"{type(pl_module).__module__}.{type(pl_module).__name__}",
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "processes": trainer.world_size,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "data": describe(trainer.datamodule),  # type: ignore[attr-defined]
        }
        atomic_write(
            folder / name.replace("config", "run").replace(".yaml", ".json"),
            json.dumps(record, indent=2) + "\n",
        )


class PredictionFile(Callback):
    """Writes what ``calosim predict`` made to ``predictions.npz`` in the run folder; on several processes one file each."""

    def __init__(self) -> None:
        self._batches: list[dict[str, torch.Tensor]] = []

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Keeps a batch."""
        self._batches.append({key: value.cpu() for key, value in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Joins the batches."""
        arrays = {key: torch.cat([batch[key] for batch in self._batches]).numpy() for key in self._batches[0]}
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir) / f"predictions{rank}.npz"
        atomic_write(path, stream.getvalue())
        print(f"{path}: {', '.join(f'{key} {array.shape}' for key, array in arrays.items())}")


class CalosimCLI(LightningCLI):
    """LightningCLI with two more options, ``--run`` and ``--quiet``; the detector is named once, in ``--data.detector``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options and links the detector."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Run folder; by default runs/<model>/<date>-<time>-<id>, new for every run.",
        )
        parser.add_argument("--quiet", type=bool, nargs="?", const=True, default=False, help="Show no progress.")
        parser.link_arguments("data.detector", "model.init_args.detector")

    def before_instantiate_classes(self) -> None:
        """Chooses the run folder and puts logs, checkpoints and pictures into it.

        Raises:
            ValueError: If the folder holds another run that is not being resumed.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        run = config.get("run") or os.environ.get("CALOSIM_RUN")
        checkpoint = config.get("ckpt_path")
        if self.subcommand != "fit" and not checkpoint:
            raise ValueError(
                f"expected --ckpt_path, a checkpoint to {self.subcommand}; without one the weights are random"
            )
        if checkpoint in ("best", "last") and run is None:
            raise ValueError(
                f"expected --run RUN_FOLDER, whose {checkpoint} checkpoint is meant, or the path of a checkpoint"
            )
        if run is None and checkpoint is not None:
            # Judging or resuming a checkpoint belongs to the run that wrote it.
            run = str(Path(checkpoint).parent.parent)
        if run is None:
            model = config.model.class_path.rpartition(".")[2].lower()
            # Under Slurm all processes must choose the same folder without talking to each other.
            unique = os.environ.get("SLURM_JOB_ID") or uuid.uuid4().hex[:6]
            run = f"runs/{model}/{time.strftime('%Y%m%d-%H%M%S')}-{unique}"
            if "SLURM_JOB_ID" in os.environ:
                run = f"runs/{model}/slurm-{unique}"
        if (
            self.subcommand == "fit"
            and not checkpoint
            and int(os.environ.get("SLURM_PROCID", os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))) == 0
            and (Path(run) / "config.yaml").exists()
        ):
            raise ValueError(f"{run}: holds a run already; choose another --run, or resume it with --ckpt_path last")
        # Processes that Lightning launches repeat the command line; they inherit the folder by the environment.
        os.environ["CALOSIM_RUN"] = run
        config.run = run
        config.trainer.default_root_dir = run
        # A progress bar redraws itself: in a log that is a line for every batch.
        if config.get("quiet"):
            os.environ["TQDM_DISABLE"] = "1"
        if config.get("quiet") or (config.trainer.get("enable_progress_bar") is None and not sys.stdout.isatty()):
            config.trainer.enable_progress_bar = False
        for logger in _as_list(config.trainer.get("logger")):
            if "save_dir" in logger.get("init_args", {}):
                logger.init_args.save_dir = run
            if logger.class_path.endswith("CSVLogger") and (Path(run) / "metrics.csv").exists():
                # CSVLogger starts its file anew; what was logged before must stay.
                logger.init_args.version = f"{self.subcommand}-{len(list(Path(run).glob(f'{self.subcommand}-*'))) + 1}"
        for callback in _as_list(config.trainer.get("callbacks")):
            if callback.class_path.endswith("ModelCheckpoint") and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = f"{run}/checkpoints"
        if any("Wandb" in c.class_path for c in _as_list(config.trainer.get("logger"))):
            wandb_offline_without_key()
        if checkpoint in ("best", "last"):
            config.ckpt_path = f"{run}/checkpoints/{checkpoint}.ckpt"


def wandb_offline_without_key() -> None:
    from netrc import NetrcParseError, netrc

    try:
        known = bool(netrc().authenticators("api.wandb.ai"))
    except (OSError, NetrcParseError):
        known = False
    if not known and not os.environ.get("WANDB_API_KEY"):
        os.environ.setdefault("WANDB_MODE", "offline")


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
    base = Path(__file__).resolve().parents[2] / "conf" / "base.yaml"
    defaults = {"default_config_files": [str(base)]} if base.exists() else {}
    # Processes that Lightning launches repeat sys.argv, and the run's record quotes it.
    sys.argv[1:] = argv
    CalosimCLI(
        model_class=CalosimModule,
        datamodule_class=RootDataModule,
        subclass_mode_model=True,
        save_config_callback=RunRecord,
        trainer_defaults={"callbacks": [PredictionFile()]},
        parser_kwargs=dict.fromkeys(("fit", "validate", "test", "predict"), defaults),
    )
