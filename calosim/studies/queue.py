"""Steps of a plan as jobs of Slurm: all are submitted at once, each after those it needs; later it is seen how they stand."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from calosim.io import read_json, write_json
from calosim.slurm import Slurm
from calosim.studies.finished import is_finished, unknown_origin
from calosim.studies.plan import Plan, Step
from calosim.studies.steps import beside, command, hold, last_line

__all__ = ["queued", "submit_steps"]


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
    study = _Study(plan, slurm, retry, _states())
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
class _Study:
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
