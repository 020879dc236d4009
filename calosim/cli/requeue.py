"""Trainings in a Slurm job that are told to make room: a checkpoint after a whole step, and the job back in the queue."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any, Self

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from calosim.files import atomic_write
from calosim.models.checkpoints import read_checkpoint
from calosim.runs import Run
from calosim.slurm import own_job, requeue

__all__ = ["AGAIN", "Requeue"]

#: Exit status of a training that made room: a temporary failure, EX_TEMPFAIL of sysexits.h.
AGAIN = 75


class Requeue(Callback):
    """Ends a training inside of a job with a checkpoint when SIGUSR1 says so, and requeues the job; SIGTERM does not requeue.

    Lightning's own handler writes the checkpoint wherever the signal comes, also between the weights' step and the count of
    it; it leaves the signal to a handler that is there before it. This one waits for the end of a batch after which no
    validation is due, or for the beginning of an epoch, on all processes, so that the training that goes on ends with the
    weights of the uninterrupted one. It listens from the beginning: a signal that comes while data are read is not lost.
    """

    def __init__(self) -> None:
        self._told = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if own_job():
            self._listen(signal.SIGUSR1)
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _listen(self, number: int) -> None:
        if number not in self._before and threading.current_thread() is threading.main_thread():
            self._before[number] = signal.signal(number, self._hear)

    def _hear(self, *_: object) -> None:
        self._told = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listens to another signal too, if the environment names one."""
        if own_job() and (other := getattr(trainer._accelerator_connector.cluster_environment, "requeue_signal", None)):
            self._listen(other)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Ends the training if it was told to, and nothing more is to be done with this batch."""
        done, every = rest[-1] + 1, trainer.val_check_batch  # type: ignore[attr-defined]
        counted = done if trainer.check_val_every_n_epoch else trainer.fit_loop.total_batch_idx + 1
        ends = done >= trainer.num_training_batches or trainer.global_step == trainer.max_steps
        due = ends or (every and counted % every == 0) or done % trainer.accumulate_grad_batches
        if not due and self._is_told(trainer):
            # What the batch has logged, which Lightning writes after this.
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._make_room(trainer, None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the training if it was told to, with the checkpoint of the last epoch's end."""
        if self._is_told(trainer):
            # One that is written now would skip the epoch.
            last = Run(trainer.default_root_dir).last
            if last.is_file() and read_checkpoint(last).get("global_step") == trainer.global_step:
                self._make_room(trainer, last)

    def _is_told(self, trainer: Trainer) -> bool:
        if own_job() is None:
            return False
        told = trainer.strategy.reduce_boolean_decision(self._told, all=False)
        return told or (trainer.received_sigterm and trainer.world_size == 1)

    def _make_room(self, trainer: Trainer, written: Path | None) -> None:
        for logger in trainer.loggers:
            logger.save()
        run, job = Run(trainer.default_root_dir), (own_job() or {}).get("job", "")
        path = run.next_hpc()
        if written is None:
            trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            if written is not None:
                atomic_write(path, written.read_bytes())
            run.keep_hpc(path)
            self._say(path, trainer.global_step, job, self._requeue(trainer, job))
        trainer.strategy.barrier()  # the end of one process may end all
        raise SystemExit(AGAIN)

    def _requeue(self, trainer: Trainer, job: str) -> str:
        """Requeues the job; the reason why not, if so."""
        if not self._told:
            return "it was told to end"
        environment = trainer._accelerator_connector.cluster_environment
        return requeue(job) if getattr(environment, "auto_requeue", True) else "auto_requeue is off"

    @staticmethod
    def _say(path: Path, steps: int, job: str, why: str) -> None:
        after = f"not requeued ({why}); go on with --ckpt_path hpc" if why else "requeued"
        print(f"calosim: {path}: written after {steps} steps; job {job} {after}", flush=True)
