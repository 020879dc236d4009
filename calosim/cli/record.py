"""What a training leaves in its run folder: settings, record, time, checkpoints, predictions; and how it makes room."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.plugins import TorchCheckpointIO

from calosim.data.datamodule import generated
from calosim.io import atomic_write, read_npz, write_json, write_npz
from calosim.loggers import MLflow
from calosim.models.base import split_unlike
from calosim.models.checkpoints import read_checkpoint
from calosim.runs import FORMAT, Run, identity, origin
from calosim.slurm import listen, own_job, requeue, told

#: Exit status of a training that made room: a temporary failure, EX_TEMPFAIL of sysexits.h.
AGAIN = 75
#: Batches after which several processes ask each other, who wait for it.
TOGETHER = 10
#: What is told of a resumed session, beside its first step and its changes.
SESSION = ("started", "command", "git", "calosim", "torch", "processes", "job", "nodes")

__all__ = ["PredictionFile", "Requeue", "RunCheckpoint", "RunRecord", "WholeCheckpoints"]


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them: a full disk or a killed process leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes one."""
        stream = io.BytesIO()
        torch.save(checkpoint, stream)
        atomic_write(path, stream.getvalue())


class RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that writes into the run folder, whatever the logger, and ends with averaged weights, if there are."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder."""
        self.dirpath = self.dirpath or str(Run(trainer.default_root_dir) / Run.CHECKPOINTS)
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the average of the weights that StochasticWeightAveraging has put in their place: nothing else is left of it."""
        super().on_train_end(trainer, pl_module)
        averaging = [c for c in trainer.callbacks if isinstance(c, StochasticWeightAveraging)]  # type: ignore[attr-defined]
        if averaging and trainer.current_epoch > averaging[0].swa_start and self.dirpath and self.filename:
            path = Path(self.dirpath) / f"{self.filename}{self.FILE_EXTENSION}"
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                print(f"{path} holds the average of the weights since epoch {averaging[0].swa_start + 1}")


def _found_again(state: dict[str, Any], callback: ModelCheckpoint) -> dict[str, Any]:
    """What a ModelCheckpoint remembers, with the paths of its files as they lie in its folder by now.

    Lightning forgets the best where the folder is spelled otherwise than in the checkpoint. A file that is gone is no best,
    and what a file says of itself counts: it may be younger than the checkpoint.

    Args:
        state: Its state in a checkpoint.
        callback: The callback that takes it over.
    """
    folder = str(callback.dirpath)

    def here(path: str) -> str:
        found = os.path.join(folder, os.path.relpath(path, state["dirpath"])) if path else ""
        return found if os.path.isfile(found) else ""

    scores = {here(path): score for path, score in state["best_k_models"].items()}
    if state["monitor"] and callback.filename and callback.save_top_k == 1:
        scores.setdefault(here(os.path.join(state["dirpath"], callback.filename + callback.FILE_EXTENSION)))
    own = {path: _own_score(path, callback.state_key, score) for path, score in scores.items() if path}
    models = {path: score for path, score in own.items() if score is not None}
    best, worst = (min, max) if callback.mode == "min" else (max, min)
    return state | {
        "dirpath": callback.dirpath,
        "best_k_models": models,
        "best_model_path": best(models, key=models.__getitem__) if models else here(state["best_model_path"]),
        "best_model_score": best(models.values(), default=None),
        "kth_best_model_path": worst(models, key=models.__getitem__) if models else "",
        "kth_value": worst(models.values(), default=state["kth_value"]),
        "last_model_path": here(state["last_model_path"]),
    }


def _own_score(path: str, key: str, remembered: Any) -> Any:
    """The score with which a checkpoint was written, by what its callback of that key remembers in it; None if it is damaged."""
    try:
        state = read_checkpoint(path).get("callbacks", {}).get(key, {})
    except ValueError:
        return None
    name = os.path.basename(path)
    return next((s for p, s in state.get("best_k_models", {}).items() if os.path.basename(p) == name), remembered)


class RunRecord(SaveConfigCallback):
    """Makes the run folder, and a log without a terminal, explain itself.

    Before training: the resolved ``config.yaml`` and ``run.json``; a resumed one makes ``config.yaml`` true of what it does, and
    tells in ``run.json`` what it has changed. After it has come to its end: ``training.json`` with the
    time (of all sessions, if it was resumed) and the samples it took. Where no progress bar can be shown: a line an epoch.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, command: Sequence[str] = (), **kwargs: Any):
        super().__init__(parser, config, **{**kwargs, "save_to_log_dir": False})
        self._command = list(command)
        self._lines = not config.get("quiet")
        self._ws = math.nan
        self._done = {"seconds": 0.0, "epochs": 0.0, "samples": 0.0}
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The time of training and validation so far, in all sessions."""
        return self._done["seconds"] + time.perf_counter() - self._begin

    def state_dict(self) -> dict[str, Any]:
        """Time, epochs and samples so far, for a resumed run to go on counting."""
        return {**self._done, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._done |= state_dict

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Finds the best checkpoints again, wherever their folder lies by now and however it is spelled."""
        states = checkpoint["callbacks"]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
                states[callback.state_key] = _found_again(states[callback.state_key], callback)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Starts the clock; writes down with what it trains, what a resumption changed, and that the run is not finished."""
        self._begin = time.perf_counter()
        run, data = Run(trainer.default_root_dir), trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
        (run / Run.TRAINING).unlink(missing_ok=True)
        found = self.config.data.batch_size != data.batch_size
        self.config.data.batch_size = data.batch_size
        settings, record = self._settings(), self._record
        if self._resumed:
            # Only now: a checkpoint that cannot be gone on with has been refused.
            before, now = identity(run.config), identity(yaml.safe_load(settings))
            changed = {
                key: [before.get(key), now.get(key)] for key in {**before, **now} if before.get(key) != now.get(key)
            }
            session = {key: record[key] for key in SESSION} | {"step": trainer.global_step, "changed": changed}
            record = run.record | {"sessions": [*run.record.get("sessions", []), session]}
        if self._resumed or found:
            atomic_write(run / Run.CONFIG, settings)
        total = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = sorted({group.get("initial_lr", group["lr"]) for group in groups})
        more: dict[str, Any] = {
            "batch_size": {"process": data.batch_size, "total": total},
            "learning_rate": rates[0] if len(rates) == 1 else rates,
        }
        for logger in trainer.loggers:
            if isinstance(logger, MLflow):
                more["mlflow"] = logger.run_id
        write_json(run / Run.RECORD, record | more)

    def _settings(self) -> str:
        """All settings as YAML."""
        return self.parser.dump(self.config, skip_none=False)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the rows of a batch on all processes."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # The first process has the largest share of the last batch, whose rest is shared.
        left = len(data.rows("train")) - batch_idx * data.batch_size * trainer.world_size
        self._done["samples"] += min(len(batch["rows"]) * trainer.world_size, left)
        self._done["epochs"] += 1 / trainer.num_training_batches

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Prints the epoch's metrics where no progress bar does."""
        if trainer.progress_bar_callback is None and trainer.is_global_zero and self._lines:
            found = {
                key: float(trainer.callback_metrics.get(key, math.nan)) for key in ("train/loss", "val/loss", "val/ws")
            }
            old, self._ws = self._ws, found["val/ws"]
            if self._ws == old:
                del found["val/ws"]  # generation has its own interval, and what it found last stays
            words = [f"{key} {value:.4g}" for key, value in found.items() if not math.isnan(value)]
            epoch, last = trainer.current_epoch + 1, trainer.max_epochs
            print(f"epoch {epoch} of {last}: {', '.join([*words, f'{self.seconds:.0f} s'])}", flush=True)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Writes ``training.json``, on one process; an interrupted training has none."""
        if trainer.interrupted or not trainer.is_global_zero:
            return
        record = {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(self.seconds, 3),
            "epochs": round(self._done["epochs"], 3),
            "steps": trainer.global_step,
            "samples": round(self._done["samples"]),
        }
        run = Run(trainer.default_root_dir)
        write_json(run / Run.TRAINING, record)
        run.keep_hpc(None)

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes both files of a new run, on one process."""
        if stage != "fit":
            return
        run = Run(trainer.default_root_dir)
        self._resumed = (run / Run.CONFIG).exists()
        for logger in trainer.loggers:
            logger.log_hyperparams({**pl_module.hparams, "config": yaml.safe_load(self._settings())})
        for name in generated(trainer.datamodule.files):  # type: ignore[attr-defined]
            print(f"calosim: {name}: was generated by a model, not by the Monte Carlo", file=sys.stderr)
        if unlike := split_unlike(pl_module.lineage):
            print(
                f"calosim: {unlike}; `calosim evaluate` will refuse to judge it on rows that it has seen",
                file=sys.stderr,
            )
        self._record = origin(torch=torch.__version__) | {
            "format": FORMAT,
            "command": self._command,
            "seed": self.config.get("seed_everything"),
            "model": type(pl_module).__name__,
            "representation": pl_module.init.get("representation", {}).get("kind"),
            "loss": pl_module.loss_name,
            "unit": pl_module.loss_unit,
            "parameters": pl_module.size,
            "processes": trainer.world_size,
            "job": own_job(),
            "nodes": trainer.num_nodes,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "data": trainer.datamodule.data.describe(),  # type: ignore[attr-defined]
            "ancestors": pl_module.ancestors,
        }
        if not self._resumed:
            atomic_write(run / Run.CONFIG, self._settings())
            write_json(run / Run.RECORD, self._record)


class PredictionFile(Callback):
    """Writes what ``calosim predict`` made to ``predictions.npz`` in the run folder: what one process would, also of several."""

    def __init__(self) -> None:
        self._batches: list[dict[str, torch.Tensor]] = []

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Keeps a batch."""
        self._batches.append({key: value.cpu() for key, value in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Joins the batches, and what the processes have of them."""
        arrays = {key: torch.cat([batch[key] for batch in self._batches]).numpy() for key in self._batches[0]}
        path = Run(trainer.default_root_dir) / Run.PREDICTIONS
        if trainer.world_size > 1:
            parts = [path.with_stem(f"{path.stem}-{rank}") for rank in range(trainer.world_size)]
            write_npz(parts[trainer.global_rank], **arrays)
            trainer.strategy.barrier()
            if not trainer.is_global_zero:
                return
            shares = [read_npz(part) for part in parts]
            order = np.argsort(np.concatenate([share["rows"] for share in shares]))
            arrays = {key: np.concatenate([share[key] for share in shares])[order] for key in arrays}
            for part in parts:
                part.unlink()
        write_npz(path, **arrays)
        print(f"{path}: {', '.join(f'{key} {array.shape}' for key, array in arrays.items())}")


class Requeue(Callback):
    """Ends a training inside of a job with a checkpoint when SIGUSR1 says so, and requeues the job; SIGTERM does not requeue.

    Lightning's own handler writes the checkpoint wherever the signal comes, also between the weights' step and the count of
    it; it leaves the signal to a handler that is there before it. This one waits for the end of a batch after which no
    validation is due, or for the beginning of an epoch, on all processes, so that the training that goes on ends with the
    weights of the uninterrupted one.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listens to another signal too, if the environment names one."""
        if other := getattr(trainer._accelerator_connector.cluster_environment, "requeue_signal", None):
            listen(other)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Ends the training if it was told to, and nothing more is to be done with this batch."""
        done, every = rest[-1] + 1, trainer.val_check_batch  # type: ignore[attr-defined]
        counted = done if trainer.check_val_every_n_epoch else trainer.fit_loop.total_batch_idx + 1
        if trainer.world_size > 1 and done % TOGETHER:
            return
        ends = done >= trainer.num_training_batches or trainer.global_step == trainer.max_steps
        due = ends or (every and counted % every == 0) or done % trainer.accumulate_grad_batches
        if not due and (again := self._told(trainer)) is not None:
            # What the batch has logged, which Lightning writes after this.
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._make_room(trainer, again)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the training if it was told to, with the checkpoint of the last epoch's end."""
        if (again := self._told(trainer)) is not None:
            # One that is written now would skip the epoch.
            last = Run(trainer.default_root_dir).last
            if last.is_file() and read_checkpoint(last).get("global_step") == trainer.global_step:
                self._make_room(trainer, again, last)

    @staticmethod
    def _told(trainer: Trainer) -> bool | None:
        """Whether one of the processes was told to make room, True, or just to end, False; None if neither."""
        if own_job() is None:
            return None
        if trainer.strategy.reduce_boolean_decision(told(), all=False):
            return True
        return False if trainer.received_sigterm and trainer.world_size == 1 else None

    @staticmethod
    def _make_room(trainer: Trainer, again: bool, written: Path | None = None) -> None:
        for logger in trainer.loggers:
            logger.save()
        run, job = Run(trainer.default_root_dir), (own_job() or {}).get("job", "")
        path = run.next_hpc()
        if written is None:
            trainer.save_checkpoint(path)
        # A job that is requeued is told to end: it does. Lightning's answer waits for the other processes.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if trainer.is_global_zero:
            if written is not None:
                atomic_write(path, written.read_bytes())
            run.keep_hpc(path)
            environment = trainer._accelerator_connector.cluster_environment
            why = "" if again and getattr(environment, "auto_requeue", True) else "it was not asked to be"
            why = why or requeue(job)
            after = f"not requeued ({why}); go on with --ckpt_path hpc" if why else "requeued"
            print(f"calosim: {path}: written after {trainer.global_step} steps; job {job} {after}", flush=True)
        trainer.strategy.barrier()  # the end of one process may end all
        raise SystemExit(AGAIN)
