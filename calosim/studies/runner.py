"""Runs a plan of trainings and evaluations: skips what is finished, resumes what was killed, several at once.

A plan is a YAML file. What it names is made in order of need:

.. code-block:: yaml

    out: runs/study                      # everything is made in here
    simulate:                            # data files, made if they are missing
      data/study.root: {detector: zn, primaries: 5000, seed: 1}
    common: {data.files: [data/study.root]}          # options of every training
    trainings:
      base:
        config: [conf/teacher.yaml]
        options: {trainer.max_epochs: 10}
      gd:                                # one run for each particle: gd-gamma, gd-lambda
        each: {particle: [gamma, lambda]}
        config: [conf/finetune/gd.yaml]
        options: {model.init_from: "{base}", data.particle: "{particle}"}    # {base} is that run's folder
    evaluate: {runs: 5, rows: 1000}      # options of `calosim evaluate`, for every training but those with `evaluate: false`
    validate: {runs: 1, rows: 1000}      # the same on the validation split, for choices between models
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calosim.studies.plan import Plan, Step

__all__ = ["run_steps"]


def run_steps(
    plan: Plan, jobs: int = 1, quiet: bool = False, only: Callable[[Step], bool] = lambda step: True
) -> dict[str, str]:
    """Runs what is not finished.

    Args:
        plan: The plan.
        jobs: How many commands run at once; they share the processor cores, and take turns at the CUDA devices.
        quiet: Print nothing and show no progress.
        only: Which steps are wanted.

    Returns:
        Why steps failed, by name; a step whose need failed is among them.
    """
    if jobs < 1:
        raise ValueError(f"expected at least one job, got {jobs}")
    wanted = {name: step for name, step in plan.steps.items() if only(step)}
    done = {name for name, step in wanted.items() if step.finished()} | (set(plan.steps) - set(wanted))
    failed: dict[str, str] = {}
    running: dict[Future[str], str] = {}
    children: set[subprocess.Popen[bytes]] = set()
    slots = list(range(jobs))
    progress = tqdm(total=len(wanted), initial=len(done & set(wanted)), unit="step", disable=True if quiet else None)
    with _terminable(), progress, ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                for name, step in wanted.items():
                    if name in done or name in failed or name in running.values():
                        continue
                    if blocked := [need for need in step.after if need in failed]:
                        failed[name] = f"needs {blocked[0]}, which failed"
                        progress.update()
                    elif slots and done.issuperset(step.after):
                        running[pool.submit(_run, plan.out, step, jobs, slots.pop(0), slots, children)] = name
                progress.set_postfix_str(", ".join(running.values()))
                if not running:
                    return failed
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    name = running.pop(future)
                    if reason := future.result():
                        failed[name] = reason
                        progress.write(f"{name}: failed: {reason}")
                    else:
                        done.add(name)
                        if not quiet:
                            progress.write(f"{name}: done")
                    progress.update()
        finally:
            for child in list(children):  # an interrupted study leaves nothing running; it resumes later
                child.kill()


_LOCK = threading.Lock()


@contextmanager
def _terminable() -> Iterator[None]:
    """Lets a termination request, such as that of a batch system, end the study in an orderly way."""

    def terminate(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(out: Path, step: Step, jobs: int, slot: int, slots: list[int], children: set[subprocess.Popen[bytes]]) -> str:
    """Runs one step to its end; an empty text, or why it failed."""
    try:
        words = list(step.words)
        log = out / "logs" / f"{step.name.replace('/', '_')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        marker = log.with_suffix(".pid")
        if marker.exists() and _alive(int(marker.read_text() or 0)):
            return f"is still running as process {marker.read_text()}; wait for it or end it"
        if step.verb == "fit" and step.folder.exists() and any(step.folder.iterdir()):
            try:
                step.check_command("begun")
            except ValueError as error:
                return str(error)
            if (step.folder / "checkpoints" / "last.ckpt").exists():
                words += ["--ckpt_path", "last"]
            else:
                shutil.rmtree(step.folder)  # killed before its first checkpoint: nothing to resume
        environment = os.environ | {"TQDM_DISABLE": "1"}
        if jobs > 1:
            environment |= _share(jobs, slot)
        with log.open("ab") as stream:
            command = [sys.executable, "-m", "calosim", step.verb, *words]
            stream.write(f"\n$ calosim {' '.join([step.verb, *words])}\n".encode())
            stream.flush()
            with subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment) as child:
                with _LOCK:
                    children.add(child)
                marker.write_text(str(child.pid))
                code = child.wait()
                children.discard(child)
        marker.unlink(missing_ok=True)
        if code == 0 and step.result.exists():
            return ""
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reason = f"exit {code}" if code else f"no {step.result} was made"
        return f"{reason}: {lines[-1][:300]} (see {log})"
    finally:
        with _LOCK:
            slots.append(slot)


def _share(jobs: int, slot: int) -> dict[str, str]:
    """The environment of one of several commands that run at once."""
    import torch

    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    if (devices := torch.cuda.device_count()) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % devices)
    return environment


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError):
        return False
    return pid > 0
