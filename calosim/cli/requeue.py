"""Trainings in a Slurm job that are told to make room: a checkpoint after a whole step, and the job back in the queue."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from calosim.io import atomic_write
from calosim.models.checkpoints import read_checkpoint
from calosim.runs import Run
from calosim.slurm import listen, own_job, requeue, told

__all__ = ["AGAIN", "Requeue"]

#: Exit status of a training that made room: a temporary failure, EX_TEMPFAIL of sysexits.h.
AGAIN = 75
#: Batches after which several processes ask each other, who wait for it.
TOGETHER = 10


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
