"""The training verbs of the ``calosim`` command: LightningCLI with self-explaining run folders."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from calosim import __version__
from calosim.base import CalosimModule
from calosim.data import RootDataModule, describe
from calosim.provenance import atomic_write, git_hash

__all__ = ["CalosimCLI", "RunRecord", "train"]


class RunRecord(SaveConfigCallback):
    """Makes the run folder explain itself: resolved ``config.yaml`` and ``run.json``, written before training starts."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any):
        super().__init__(parser, config, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes both files, on one process.

        Raises:
            ValueError: If the folder holds another run that is not being resumed.
        """
        folder = Path(trainer.default_root_dir)
        if stage != "fit":
            return
        name = "config.yaml"
        if (folder / name).exists():
            if not trainer.ckpt_path and not self._resuming():
                raise ValueError(
                    f"{folder}: holds a run already; choose another --run, or resume it with --ckpt_path last"
                )
            # What the run was started with stays; how it was resumed stands beside it.
            name = f"config.resumed-{len(list(folder.glob('config.resumed-*.yaml'))) + 1}.yaml"
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

    def _resuming(self) -> bool:
        return bool(self.config.get("ckpt_path"))


class CalosimCLI(LightningCLI):
    """LightningCLI with one more option, ``--run``, and the detector named once, in ``--data.detector``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--run`` and links the detector."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Run folder; by default runs/<model>/<date>-<time>-<id>, new for every run.",
        )
        parser.link_arguments("data.detector", "model.init_args.detector")

    def before_instantiate_classes(self) -> None:
        """Chooses the run folder and puts logs, checkpoints and pictures into it."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        run = config.get("run") or os.environ.get("CALOSIM_RUN")
        if run is None:
            model = config.model.class_path.rpartition(".")[2].lower()
            # Under Slurm all processes must choose the same folder without talking to each other.
            unique = os.environ.get("SLURM_JOB_ID") or uuid.uuid4().hex[:6]
            run = f"runs/{model}/{time.strftime('%Y%m%d-%H%M%S')}-{unique}"
            if "SLURM_JOB_ID" in os.environ:
                run = f"runs/{model}/slurm-{unique}"
        # Processes that Lightning launches repeat the command line; they inherit the folder by the environment.
        os.environ["CALOSIM_RUN"] = run
        config.run = run
        config.trainer.default_root_dir = run
        for logger in _as_list(config.trainer.get("logger")):
            if "save_dir" in logger.get("init_args", {}):
                logger.init_args.save_dir = run
        for callback in _as_list(config.trainer.get("callbacks")):
            if callback.class_path.endswith("ModelCheckpoint") and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = f"{run}/checkpoints"
        if any("Wandb" in c.class_path for c in _as_list(config.trainer.get("logger"))):
            _wandb_offline_without_key()
        if config.get("ckpt_path") in ("best", "last"):
            config.ckpt_path = f"{run}/checkpoints/{config.ckpt_path}.ckpt"


def _wandb_offline_without_key() -> None:
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
    os.environ.pop("CALOSIM_RUN", None) if "LOCAL_RANK" not in os.environ else None
    base = Path(__file__).resolve().parent.parent / "conf" / "base.yaml"
    defaults = {"default_config_files": [str(base)]} if base.exists() else {}
    CalosimCLI(
        model_class=CalosimModule,
        datamodule_class=RootDataModule,
        subclass_mode_model=True,
        save_config_callback=RunRecord,
        parser_kwargs=dict.fromkeys(("fit", "validate", "test", "predict"), defaults),
        # LightningCLI warns of arguments that are not the process's own, and of those that are when they are passed.
        args=None if argv == sys.argv[1:] else argv,
    )
