"""What a training leaves in its run folder: settings, record, time, checkpoints, predictions."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from calosim import __version__
from calosim.files import atomic_write, write_json, write_npz
from calosim.runs import FORMAT, Run, git_hash
from calosim.showers.datamodule import describe

__all__ = ["PredictionFile", "RunCheckpoint", "RunRecord"]


class RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that writes into the run folder, whatever the logger."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder."""
        self.dirpath = self.dirpath or str(Run(trainer.default_root_dir) / Run.CHECKPOINTS)
        super().setup(trainer, pl_module, stage)


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
        write_json(Run(trainer.default_root_dir) / Run.TRAINING, record)

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes both files, on one process."""
        if stage != "fit":
            return
        run = Run(trainer.default_root_dir)
        # What the run was started with stays; how it was resumed stands beside it.
        resumed = len(list(run.folder.glob("config*.yaml")))
        config, record = Run.CONFIG, Run.RECORD
        if resumed:
            config, record = f"config.resumed-{resumed}.yaml", f"run.resumed-{resumed}.json"
        atomic_write(run / config, self.parser.dump(self.config, skip_none=False))
        write_json(
            run / record,
            {
                "format": FORMAT,
                "calosim": __version__,
                "torch": torch.__version__,
                "git": git_hash(),
                "command": sys.argv[1:],
                "seed": self.config.get("seed_everything"),
                "model": type(pl_module).__name__,
                "parameters": sum(p.numel() for p in pl_module.parameters()),
                "processes": trainer.world_size,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "data": describe(trainer.datamodule),  # type: ignore[attr-defined]
            },
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
        path = Run(trainer.default_root_dir) / Run.PREDICTIONS
        if trainer.world_size > 1:
            path = path.with_stem(f"{path.stem}-{trainer.global_rank}")
        write_npz(path, **arrays)
        print(f"{path}: {', '.join(f'{key} {array.shape}' for key, array in arrays.items())}")
