"""Runs the steps of a study, here or as jobs of Slurm: skips what is finished, resumes what was killed, several at once."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from calosim.data.cache import content_hash, primaries_hash, read_recipe
from calosim.evaluation.stored import Evaluation
from calosim.io import read_json, temporary_folder, try_lock, write_json
from calosim.options import Execution
from calosim.processes import own_command
from calosim.runs import Run, difference, identity
from calosim.slurm import Slurm
from calosim.studies.plan import Step, command_words

__all__ = [
    "Runner",
    "check_training",
    "command",
    "files_of",
    "hold",
    "is_finished",
    "last_line",
    "print_steps",
    "run_steps",
    "simulated",
    "unknown_origin",
]


_ADVICE = "to make it anew, or choose another `out`"
#: Options of ``simulate`` that change no shower.
_HOW = ("out", "workers", "quiet")


def files_of(settings: Mapping[str, Any]) -> list[str]:
    """The data files of a training."""
    files = settings["data"]["files"]
    return [files] if isinstance(files, str) else list(files)


def simulated(given: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the showers of ``calosim simulate``: the settings that are given, and defaults for the rest."""
    from calosim.cli.tools import resolved

    return {key: value for key, value in resolved("simulate", command_words(given)).items() if key not in _HOW}


def is_finished(step: Step) -> bool:
    """Whether a step's result is there, of the weights that are there.

    Raises:
        ValueError: If it was made with other settings or from other data than the plan's.
    """
    if not step.result.exists():
        return False
    if step.subcommand == "simulate":
        _check_data(step)
    elif step.is_training:
        check_training(step, "finished")
    else:
        _check_evaluation(step)
        return not Evaluation(step.folder).older  # then it is made anew
    return True


def unknown_origin(step: Step) -> str:
    """A line about a data file without a record of how it was made, which is taken as it is; empty otherwise."""
    if step.subcommand != "simulate" or not step.result.exists() or read_recipe(step.result) is not None:
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
        trained, now = run.record["data"]["data_hash"], content_hash(files, detector)
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
        trained, found = split and split["data_hash"], evaluation.record["data"]["data_hash"]
        differs = f"data of hash {found} instead of {trained}" if split and trained != found else ""
    if differs:
        raise ValueError(
            f"{step.folder}: finished with other settings than the plan's (it has {differs}); remove the folder {_ADVICE}"
        )


def command(step: Step) -> list[str]:
    """The words of ``calosim`` that make a step, or go on with it; a training's folder with nothing to go on with is removed.

    Raises:
        ValueError: If another training than the step's was begun there, or a process trains there.
    """
    words = [step.subcommand, *step.words]
    run = Run(step.folder)
    if not step.is_training or run.is_bare:
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


def hold(path: Path) -> TextIO:
    """Takes a lock, which the system releases when the last process that has the file open ends, on whichever host that is.

    Returns:
        The open file.

    Raises:
        ValueError: If another process has it.
    """
    stream = path.open("a+")
    if not try_lock(stream.fileno()):
        with stream:
            stream.seek(0)
            raise ValueError(f"is still run by {stream.read().strip()}; wait for it or end it")
    _sign(stream, os.getpid())
    return stream


def _sign(lock: TextIO, pid: int) -> None:
    """Writes down who has a lock: a process of a host, and since when."""
    lock.truncate(0)
    lock.write(f"process {pid} of {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    lock.flush()


def last_line(log: Path) -> str:
    """The last line of a log that is not about the log's own job; empty without one."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("srun: ")]
    return lines[-1][:300] if lines else ""


def print_steps(steps: Mapping[str, Step]) -> None:
    """Prints the steps with their state and command, and how long finished trainings took."""
    lines = []
    for step in steps.values():
        state, text = "finished" if is_finished(step) else "to do", unknown_origin(step)
        if step.is_training:
            run = Run(step.folder)
            state = "to resume" if state == "to do" and run.last.exists() else state
            text = f"{run.training['seconds'] / 60:.1f} min" if run.training else ""
        lines.append((step.name, state, text, shlex.join(["calosim", step.subcommand, *step.words])))
    _print_aligned(lines)


def _print_aligned(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(f"{word:<{width}}" for word, width in zip(line, widths, strict=True)).rstrip())


def run_steps(
    steps: Mapping[str, Step], execution: Execution = Execution(), quiet: bool = False
) -> dict[str, str] | None:
    """Runs what is not finished, or submits what is neither finished nor in the queue.

    Args:
        steps: The steps, each after those it needs.
        execution: Where and how.
        quiet: Print nothing and show no progress.

    Returns:
        Why steps failed, by name; a step whose need failed is among them. None while steps are in Slurm's queue.

    Raises:
        ValueError: If a finished step was made with other settings than the plan's, or from other data; if a step has failed
            while others are in the queue; if there is no Slurm, or it refuses a job.
    """
    runner = Runner(steps, execution, quiet)
    for name, step in steps.items():
        # What is evaluated anew when its training is: an evaluation that is there is of weights that were there.
        if is_finished(step) and (step.subcommand != "evaluate" or runner.done.issuperset(step.after)):
            runner.done.add(name)
    return runner.submit_all() if execution.executor == "slurm" else runner.run_all()


#: How often it is seen whether a step has ended, in seconds.
_PAUSE = 0.1
#: Seconds that commands have to end when they are asked to.
PATIENCE = 20


@dataclass
class Runner:
    """Steps while they run.

    Attributes:
        steps: The steps, each after those it needs.
        execution: Where and how they run.
        quiet: Whether nothing but failures is said.
        done: Steps that are finished.
        failed: Why steps failed.
        running: Commands that run here, with the numbers of their places, by step.
        jobs: Jobs of Slurm, by step.
    """

    steps: Mapping[str, Step]
    execution: Execution
    quiet: bool
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, tuple[subprocess.Popen[bytes], int]] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)

    def run_all(self) -> dict[str, str]:
        """Runs the steps here; an interrupted study leaves nothing running, and resumes later."""
        for line in filter(None, map(unknown_origin, self.steps.values())):
            self._say(line)
        over, unseen = len(self.done), True if self.quiet else None
        with tqdm(total=len(self.steps), initial=over, unit="step", disable=unseen) as bar, _interruptions() as seen:
            try:
                while len(self.done) + len(self.failed) < len(self.steps):
                    self._advance()
                    bar.update(len(self.done) + len(self.failed) - bar.n)
                    bar.set_postfix_str(", ".join(self.running))
                    if seen:
                        raise KeyboardInterrupt
                    time.sleep(_PAUSE)
            finally:
                self._end()
        return self.failed

    def submit_all(self) -> dict[str, str] | None:
        """Submits the steps to Slurm and prints how all of them stand, unless all are finished."""
        states = _states()
        for name, step in self.steps.items():
            if name in self.done or self._blocked(step):
                continue
            try:
                lock = hold(step.beside("lock"))
            except ValueError as error:
                self.failed[name] = str(error)
                continue
            with lock:
                self._submit(step, states)
        if (self.jobs or self.failed) and not self.quiet:
            lines = [(name, *self._stands(step, states)) for name, step in self.steps.items()]
            _print_aligned(lines)
            print(", ".join(f"{number} {state}" for state, number in Counter(state for _, state, _ in lines).items()))
        if self.jobs and self.failed:
            raise ValueError(
                f"{len(self.failed)} of {len(self.steps)} steps failed: {', '.join(self.failed)}; "
                f"{len(self.jobs)} still in the queue"
            )
        return None if self.jobs else self.failed

    def _blocked(self, step: Step) -> bool:
        """Whether a step that this one needs has failed, and so has this one."""
        if blocked := [need for need in step.after if need in self.failed]:
            self.failed[step.name] = f"needs {blocked[0]}, which failed"
        return bool(blocked)

    def _stands(self, step: Step, states: Mapping[str, str]) -> tuple[str, str]:
        """How a step stands in Slurm, in a word and in more."""
        if step.name in self.failed:
            return "failed", self.failed[step.name]
        if job := self.jobs.get(step.name):
            return "queued" if states.get(job, "PENDING") == "PENDING" else "running", f"job {job}"
        return "finished", unknown_origin(step)

    def _submit(self, step: Step, states: Mapping[str, str]) -> None:
        """Submits a step, unless it is in the queue or has failed there.

        Raises:
            ValueError: If the first job is refused: what is wrong with it is wrong with all.
        """
        record = step.beside("job")
        known: dict[str, str] = read_json(record) if record.exists() else {}
        if known.get("job") not in states:
            if known and not self.execution.retry and not step.result.exists():
                words = last_line(Path(known["log"])) or "it left no log; was it cancelled?"
                self.failed[step.name] = f"job {known['job']}: {words} (see {known['log']}; --retry submits it again)"
                return
            needs = [self.jobs[need] for need in step.after if need in self.jobs]
            options = [f"job-name={step.name}", "kill-on-invalid-dep=yes"]
            options += [f"dependency=afterok:{':'.join(needs)}"] if needs else []
            slurm = self.execution.slurm or Slurm()
            slurm = replace(slurm, folder=str(step.about.parent), more=[*slurm.more, *options])
            slurm = slurm if step.is_training else replace(slurm, nodes=1, tasks=1)
            try:
                job, script = slurm.submit(command(step), requeue=step.is_training)
            except ValueError as error:
                if not self.jobs:
                    raise
                self.failed[step.name] = str(error)
                return
            known = {"job": job, "log": f"{script.with_suffix('')}-{job}.out"}
            write_json(record, known)
        self.jobs[step.name] = known["job"]

    def _say(self, line: str) -> None:
        if not self.quiet:
            tqdm.write(line)

    def _advance(self) -> None:
        """Takes note of what has ended and starts what can be."""
        for name, (child, _) in list(self.running.items()):
            if child.poll() is not None:
                del self.running[name]
                self._note(self.steps[name], child.returncode)
        for name, step in self.steps.items():
            if name in self.done or name in self.failed or name in self.running or self._blocked(step):
                continue
            if len(self.running) < self.execution.jobs and self.done.issuperset(step.after):
                try:
                    with hold(step.beside("lock")) as lock:
                        self._start(step, lock)
                except ValueError as error:
                    self._fail(name, str(error))
                except OSError as error:  # such as a full disk, in its log
                    self._fail(name, f"{error.filename or step.about}: {error.strerror or error}")

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        tqdm.write(f"{name}: failed: {reason}")

    def _note(self, step: Step, code: int) -> None:
        """Takes note of a step that has ended."""
        if code == 0 and step.result.exists():
            self.done.add(step.name)
            return self._say(f"{step.name}: done")
        log = step.beside("log")
        self._fail(
            step.name, f"{f'exit {code}' if code else f'no {step.result} was made'}: {last_line(log)} (see {log})"
        )

    def _start(self, step: Step, lock: TextIO) -> None:
        """Starts a step here.

        Raises:
            ValueError: If it is in Slurm's queue, or another training was begun in its place.
        """
        record = step.beside("job")
        if record.exists() and shutil.which("squeue") and (state := _states().get(job := read_json(record)["job"])):
            raise ValueError(f"is job {job} of Slurm, which is {state}; wait for it or cancel it")
        words = command(step)
        slot = min(set(range(self.execution.jobs)) - {slot for _, slot in self.running.values()})
        with step.beside("log").open("ab") as log:
            log.write(f"\n$ calosim {shlex.join(words)}\n".encode())
            log.flush()
            # It holds the lock too: whatever becomes of the study, a step that runs is not begun again.
            child = subprocess.Popen(
                own_command(words),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TQDM_DISABLE": "1"} | _share(self.execution.jobs, slot),
                pass_fds=(lock.fileno(),),
            )
        self.running[step.name] = child, slot
        _sign(lock, child.pid)

    def _end(self) -> None:
        """Ends what still runs: in order, and by force what does not."""
        for child, _ in self.running.values():
            child.terminate()
        for child, _ in self.running.values():
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


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


def _share(jobs: int, slot: int) -> dict[str, str]:
    """The environment of one of several commands that run at once; threads that the user has set stay."""
    if jobs == 1:
        return {}
    import torch

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    devices = torch.cuda.device_count()
    return {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": str(slot % devices)} if devices > 1 else {})
