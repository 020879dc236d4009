"""Runs the steps of a plan, here or as jobs of Slurm: skips what is finished, resumes what was killed, several at once."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from calosim.data.cache import current_hash, primaries_hash, read_recipe
from calosim.evaluation.stored import Evaluation
from calosim.io import read_json, temporary_folder, write_json
from calosim.options import Execution
from calosim.processes import own_command
from calosim.runs import Run, difference, identity
from calosim.slurm import Slurm
from calosim.studies.plan import Plan, Step, files_of, simulated

__all__ = [
    "beside",
    "check_training",
    "command",
    "hold",
    "is_finished",
    "last_line",
    "queued",
    "run_steps",
    "sign",
    "submit_steps",
    "unknown_origin",
]


_ADVICE = "to make it anew, or choose another `out`"


def is_finished(step: Step) -> bool:
    """Whether a step's result is there, of the weights that are there.

    Raises:
        ValueError: If it was made with other settings or from other data than the plan's.
    """
    if not step.result.exists():
        return False
    if step.verb == "simulate":
        _check_data(step)
    elif step.verb == "fit":
        check_training(step, "finished")
    else:
        _check_evaluation(step)
        return not Evaluation(step.folder).older  # then it is made anew
    return True


def unknown_origin(step: Step) -> str:
    """A line about a data file without a record of how it was made, which is taken as it is; empty otherwise."""
    if step.verb != "simulate" or not step.result.exists() or read_recipe(step.result) is not None:
        return ""
    return f"{step.result}: taken as it is; no record tells that it was made as the plan says"


def check_training(step: Step, state: str) -> None:
    """Checks that a training in the step's folder is the plan's: same resolved settings, same content of the data.

    Args:
        step: A ``fit`` step.
        state: What it is, ``begun`` or ``finished``, for the message.

    Raises:
        ValueError: If it is another one, or none.
    """
    run = Run(step.folder)
    if not run.exists:
        raise ValueError(
            f"{step.folder}: expected the training of the plan or nothing, found a folder without {Run.RECORD}"
        )
    if differs := difference(identity(run.config), identity(step.settings)):
        raise ValueError(
            f"{step.folder}: {state} with other settings than the plan's (it has {differs}); remove the folder {_ADVICE}"
        )
    files = files_of(step.settings)
    # Missing data are made by the plan, or refused by the step that needs them.
    if all(Path(file).is_file() for file in files):
        detector = step.settings["data"]["detector"]
        trained, now = run.record["data"]["data_hash"], current_hash(files, detector)
        if trained != now:
            raise ValueError(
                f"{step.folder}: {state} on other data than {', '.join(files)} (it has hash {trained} instead of {now}); "
                f"remove the folder {_ADVICE}"
            )


def _check_data(step: Step) -> None:
    recipe = read_recipe(step.result)
    if recipe is None:
        return
    wanted = simulated(step.options)
    differs = difference(simulated(recipe["settings"]), wanted)
    source = wanted["primaries"]
    if not differs and isinstance(source, str) and Path(source).is_file():
        made, now = recipe.get("primaries_hash"), primaries_hash(source)
        differs = "" if made == now else f"the primaries of another {source}"
    if differs:
        raise ValueError(
            f"{step.result}: made with other settings than the plan's (it has {differs}); remove the file to make it anew, "
            "or name another one"
        )


def _check_evaluation(step: Step) -> None:
    evaluation = Evaluation(step.folder)
    arguments, wanted = evaluation.record["arguments"], step.settings
    made = {key: arguments[key] for key in step.options if key in arguments}
    differs = difference(made, {key: wanted[key] for key in made})
    if not differs:
        split = Run(step.options["shower"]).split
        trained, judged = split and split["data_hash"], evaluation.record["data"]["data_hash"]
        differs = f"data of hash {judged} instead of {trained}" if split and trained != judged else ""
    if differs:
        raise ValueError(
            f"{step.folder}: finished with other settings than the plan's (it has {differs}); remove the folder {_ADVICE}"
        )


def command(step: Step) -> list[str]:
    """The words of ``calosim`` that make a step, or go on with it; a training's folder with nothing to go on with is removed.

    Raises:
        ValueError: If another training than the step's was begun there, or a process trains there.
    """
    words = [step.verb, *step.words]
    run = Run(step.folder)
    if step.verb != "fit" or run.is_bare:
        return words
    check_training(step, "begun")
    there = {
        name: path.stat().st_mtime
        for name, path in {"last": run.last, "hpc": run.hpc}.items()
        if path and path.exists()
    }
    if there:
        return [*words, "--ckpt_path", max(there, key=lambda name: there[name])]
    held = run.claim()  # refused while it is trained, on whichever host
    # Killed before its first checkpoint; aside first, so that nobody finds half of it.
    with temporary_folder(step.folder.parent) as aside:
        step.folder.rename(aside / step.folder.name)
    run.release(held)
    return words


def beside(step: Step, out: Path, suffix: str) -> Path:
    """A file about a step: beside the folder of a shared training, which other studies have too, else among the study's logs."""
    if step.shared and suffix != "log":
        path = step.folder.with_name(f".{step.folder.name}.{suffix}")
    else:
        path = out / "logs" / f"{step.name.replace('/', '_')}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def hold(path: Path) -> TextIO | str:
    """Takes a lock, which the system releases when the last process that has the file open ends, on whichever host that is.

    Returns:
        The open file; or who has the lock, in words.
    """
    stream = path.open("a+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with stream:
            stream.seek(0)
            return stream.read().strip()
    except OSError:
        pass  # a file system without locks
    sign(stream, os.getpid())
    return stream


def sign(lock: TextIO, pid: int) -> None:
    """Writes down who has a lock: a process of a host, and since when."""
    lock.truncate(0)
    lock.write(f"process {pid} of {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    lock.flush()


def last_line(log: Path) -> str:
    """The last line of a log that is not about the log's own job; empty without one."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("srun: ")]
    return lines[-1][:300] if lines else ""


def submit_steps(plan: Plan, slurm: Slurm, retry: bool = False, quiet: bool = False) -> dict[str, str] | None:
    """Submits what is neither finished nor in the queue, and prints how all steps stand, unless all are finished.

    Args:
        plan: The plan.
        slurm: What each job asks for; only trainings have several tasks.
        retry: Whether steps that failed are submitted again, and those that needed them.
        quiet: Print nothing.

    Returns:
        Why steps failed, by name; None while there are some in the queue.

    Raises:
        ValueError: If a step has failed while others are in the queue; if there is no Slurm, or it refuses a job; or if a
            finished step was made with other settings than the plan's, or from other data.
    """
    study = _Queue(plan, slurm, retry, _states())
    lines = [(name, *study.stand(step)) for name, step in plan.steps.items()]
    if (study.jobs or study.failed) and not quiet:
        widths = [max(len(line[i]) for line in lines) for i in range(2)]
        for name, state, detail in lines:
            print(f"{name:<{widths[0]}}  {state:<{widths[1]}}  {detail}".rstrip())
        print(", ".join(f"{number} {state}" for state, number in Counter(state for _, state, _ in lines).items()))
    if study.jobs and study.failed:
        raise ValueError(
            f"{len(study.failed)} of {len(plan.steps)} steps failed: {', '.join(study.failed)}; "
            f"{len(study.jobs)} still in the queue"
        )
    return None if study.jobs else study.failed


def queued(step: Step, out: Path) -> str:
    """The job of a step that is in Slurm's queue, in words; empty if there is none, or no Slurm here."""
    record = beside(step, out, "job")
    if record.exists() and shutil.which("squeue"):
        job = read_json(record)["job"]
        if state := _states().get(job):
            return f"job {job} of Slurm, which is {state}"
    return ""


@dataclass
class _Queue:
    """A plan while it is submitted.

    Attributes:
        plan: The plan.
        slurm: What jobs ask for.
        retry: Whether failed steps are submitted again.
        states: States of the jobs in the queue.
        jobs: Jobs of the steps that are in the queue, by step.
        failed: Why steps failed.
    """

    plan: Plan
    slurm: Slurm
    retry: bool
    states: dict[str, str]
    jobs: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def stand(self, step: Step) -> tuple[str, str]:
        """How a step stands, in a word and in more; it is submitted if nothing is known of it."""
        if is_finished(step) and (step.verb != "evaluate" or not {*self.jobs, *self.failed}.intersection(step.after)):
            return "finished", unknown_origin(step)
        lock = hold(beside(step, self.plan.out, "lock"))
        if isinstance(lock, str):
            return self.fail(step, f"is still run by {lock}; wait for it or end it")
        with lock:
            record = beside(step, self.plan.out, "job")
            known: dict[str, str] = read_json(record) if record.exists() else {}
            if blocked := [need for need in step.after if need in self.failed]:
                return self.fail(step, f"needs {blocked[0]}, which failed")
            if known.get("job") not in self.states:
                if known and not self.retry and not step.result.exists():
                    words = last_line(Path(known["log"])) or "it left no log; was it cancelled?"
                    return self.fail(
                        step, f"job {known['job']}: {words} (see {known['log']}; --retry submits it again)"
                    )
                try:
                    known = self.submit(step)
                except ValueError as error:
                    if not self.jobs:
                        raise  # what is wrong with the first job is wrong with all
                    return self.fail(step, str(error))
                write_json(record, known)
            self.jobs[step.name] = job = known["job"]
            return "running" if self.states.get(job, "PENDING") != "PENDING" else "queued", f"job {job}"

    def fail(self, step: Step, reason: str) -> tuple[str, str]:
        self.failed[step.name] = reason
        return "failed", reason

    def submit(self, step: Step) -> dict[str, str]:
        """Submits a step: its job and its log."""
        needs = [self.jobs[need] for need in step.after if need in self.jobs]
        options = [f"job-name={step.name}", "kill-on-invalid-dep=yes"]
        options += [f"dependency=afterok:{':'.join(needs)}"] if needs else []
        asked = replace(self.slurm, folder=str(self.plan.out / "logs"), more=[*self.slurm.more, *options])
        if step.verb != "fit":
            asked = replace(asked, nodes=1, tasks=1)
        job, script = asked.submit(command(step), requeue=step.verb == "fit")
        return {"job": job, "log": f"{script.with_suffix('')}-{job}.out"}


def _states() -> dict[str, str]:
    """The user's jobs in the queue, with their states.

    Raises:
        ValueError: If there is no Slurm.
    """
    words = ["squeue", "--me", "--noheader", "--format=%i %T"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError("squeue is not there: expected a machine that submits to Slurm") from None
    if done.returncode:
        raise ValueError(f"squeue: {' '.join(done.stderr.split())}")
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())


#: How often it is seen whether a step has ended, in seconds.
_PAUSE = 0.1
#: Seconds that commands have to end when they are asked to.
PATIENCE = 20


def run_steps(plan: Plan, execution: Execution = Execution(), quiet: bool = False) -> dict[str, str] | None:
    """Runs what is not finished.

    Args:
        plan: The plan.
        execution: Where and how.
        quiet: Print nothing and show no progress.

    Returns:
        Why steps failed, by name; a step whose need failed is among them. None while steps are in Slurm's queue.

    Raises:
        ValueError: If a finished step was made with other settings than the plan's, or from other data.
    """
    if execution.executor == "slurm":
        return submit_steps(plan, execution.slurm or Slurm(), execution.retry, quiet)
    done: set[str] = set()
    for name, step in plan.steps.items():
        # What is judged anew when its training is: an evaluation that is there is of weights that were there.
        if is_finished(step) and (step.verb != "evaluate" or done.issuperset(step.after)):
            done.add(name)
    with tqdm(total=len(plan.steps), initial=len(done), unit="step", disable=True if quiet else None) as progress:
        study = _Study(plan, list(range(execution.jobs)), progress, quiet, done)
        for line in filter(None, map(unknown_origin, plan.steps.values())):
            study.say(line)
        with _interruptions() as seen:
            try:
                while study.advance():
                    if seen:
                        raise KeyboardInterrupt
                    time.sleep(_PAUSE)
            finally:
                study.end()  # an interrupted study leaves nothing running; it resumes later
    return study.failed


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Ctrl-C and requests to end, such as a batch system's, as they come: none falls between a command's start and its note.

    They are passed on at the end, to what ends the whole command.
    """
    seen: list[int] = []
    before = {kind: signal.signal(kind, lambda k, _: seen.append(k)) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        if seen:
            signal.raise_signal(seen[0])


@dataclass
class _Study:
    """A plan while it runs.

    Attributes:
        plan: The plan.
        slots: Numbers of the commands that may still be started.
        progress: Shows how many steps are over.
        quiet: Whether nothing but failures is said.
        done: Steps that are finished.
        failed: Why steps failed.
        running: Commands with their slots, by step.
        told: Who is waited for, by step.
    """

    plan: Plan
    slots: list[int]
    progress: tqdm[Any]
    quiet: bool
    done: set[str]
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, tuple[subprocess.Popen[bytes], int]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.jobs = len(self.slots)

    def say(self, line: str) -> None:
        if not self.quiet:
            tqdm.write(line)

    def advance(self) -> bool:
        """Takes note of what has ended and starts what can be; False if nothing is left."""
        for name, (child, slot) in list(self.running.items()):
            if child.poll() is not None:
                del self.running[name]
                self.slots.append(slot)
                self.note(name, self.reason(self.plan.steps[name], child.returncode))
        for name, step in self.plan.steps.items():
            if name in self.done or name in self.failed or name in self.running:
                continue
            if blocked := [need for need in step.after if need in self.failed]:
                self.failed[name] = f"needs {blocked[0]}, which failed"
                self.progress.update()
            elif self.slots and self.done.issuperset(step.after):
                try:
                    self.start(step)
                except ValueError as error:
                    self.note(name, str(error))
                except OSError as error:  # such as a full disk, in its log
                    self.note(name, f"{error.filename or self.plan.out}: {error.strerror or error}")
        self.progress.set_postfix_str(", ".join(self.running))
        return len(self.done) + len(self.failed) < len(self.plan.steps)

    def note(self, name: str, reason: str) -> None:
        """Takes note of a step that is over."""
        if reason:
            self.failed[name] = reason
            tqdm.write(f"{name}: failed: {reason}")
        else:
            self.done.add(name)
            self.say(f"{name}: done")
        self.progress.update()

    def start(self, step: Step) -> None:
        """Starts a step; a shared training that another study makes is waited for.

        Raises:
            ValueError: If another study runs the step, or another training was begun in its place.
        """
        lock = hold(beside(step, self.plan.out, "lock"))
        if isinstance(lock, str):
            if not step.shared:
                raise ValueError(f"is still run by {lock}; wait for it or end it")
            if self.told.get(step.name) != lock:
                self.told[step.name] = lock
                self.say(f"{step.name}: waits for {lock}, which makes {step.folder}")
            return
        with lock:
            if job := queued(step, self.plan.out):
                raise ValueError(f"is {job}; wait for it or cancel it")
            # Another study may have made it while this one waited for the lock.
            if step.shared and is_finished(step):
                self.note(step.name, "")
                return
            words = command(step)
            slot = self.slots.pop(0)
            with beside(step, self.plan.out, "log").open("ab") as log:
                log.write(f"\n$ calosim {shlex.join(words)}\n".encode())
                log.flush()
                # It holds the lock too: whatever becomes of the study, a step that runs is not begun again.
                child = subprocess.Popen(
                    own_command(words),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"TQDM_DISABLE": "1"} | _share(self.jobs, slot),
                    pass_fds=(lock.fileno(),),
                )
            self.running[step.name] = child, slot
            sign(lock, child.pid)

    def reason(self, step: Step, code: int) -> str:
        """Why a step that ended failed; empty if it did not."""
        if code == 0 and step.result.exists():
            return ""
        log = beside(step, self.plan.out, "log")
        return f"{f'exit {code}' if code else f'no {step.result} was made'}: {last_line(log)} (see {log})"

    def end(self) -> None:
        """Ends what still runs: in order, and by force what does not."""
        for child, _ in self.running.values():
            child.terminate()
        for child, _ in self.running.values():
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _share(jobs: int, slot: int) -> dict[str, str]:
    """The environment of one of several commands that run at once."""
    if jobs == 1:
        return {}
    import torch

    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    if (devices := torch.cuda.device_count()) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % devices)
    return environment
