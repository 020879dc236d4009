"""``calosim submit``: any other verb as a batch job of Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from jsonargparse import ArgumentParser

from calosim.cli.words import TRAINING, submit_words
from calosim.simulation.generate import Shard
from calosim.slurm import TASK, Slurm

__all__ = ["run"]


def run(argv: list[str]) -> None:
    """Submits the verb that follows, with its options, as a batch job; or shows the script.

    A training runs as one process for each of the job's tasks, and goes on by itself when its job starts again; what is no
    training is one process.

    Args:
        argv: ``submit``, the verb and its options, and ``--slurm.*`` and ``--dry-run`` anywhere among them.

    Raises:
        ValueError: If what is no training is to run several times at once, or the jobs of an array are not those of the command.
    """
    words, command = submit_words(argv[1:])
    parser = ArgumentParser(
        prog="calosim submit VERB [options of VERB]",
        description=(run.__doc__ or "").split("\n\n")[0],
        exit_on_error=False,
    )
    parser.add_class_arguments(Slurm, "slurm")
    parser.add_argument("--dry_run", type=bool, nargs="?", const=True, default=False, help="Print the script only.")
    options = parser.parse_args(words)
    settings = parser.instantiate(options).slurm
    verb, *rest = command
    _check_array(rest, settings)
    if verb in TRAINING:
        command = [verb, "-c", "conf/cluster/slurm.yaml", *rest, *_processes(rest, settings)]
    elif max(settings.nodes, settings.tasks or 1) > 1:
        raise ValueError(
            f"{verb} is one process: expected 1 as --slurm.nodes and --slurm.tasks; --slurm.array makes several jobs"
        )
    else:
        settings = replace(settings, tasks=1)
    if options.dry_run:
        print(settings.script(command, requeue=verb == "fit"), end="")
        return
    job, script = settings.submit(command, requeue=verb == "fit")
    print(f"job {job}: {script}, its log is beside it")


def _check_array(words: Sequence[str], settings: Slurm) -> None:
    """Checks that the jobs of an array differ, and that they are all shards if they are shards.

    Raises:
        ValueError: If not.
    """
    if any(TASK in word for word in words) != bool(settings.numbers):
        have, lack = (TASK, "--slurm.array") if not settings.numbers else ("--slurm.array", f"{TASK} in an option")
        raise ValueError(
            f"expected {lack} beside {have}: the numbers of an array's jobs stand for {TASK} in the command"
        )
    text = dict(pairwise(words)).get("--shard", "")
    text = next((word.partition("=")[2] for word in words if word.startswith("--shard=")), text)
    if TASK in text:
        shards = [Shard.read(text.replace(TASK, str(number))) for number in settings.numbers]
        count = shards[0].count
        if {shard.number for shard in shards} != set(range(1, count + 1)):
            raise ValueError(f"--slurm.array: expected 1-{count}, the shards of {text}, got {settings.array}")


def _processes(words: Sequence[str], settings: Slurm) -> list[str]:
    """The trainer's options for the job's tasks, but for those that were given."""
    tasks = {"--trainer.devices": settings.devices, "--trainer.num_nodes": settings.nodes}
    given = {word.partition("=")[0] for word in words}
    return [part for option, number in tasks.items() if option not in given for part in (option, str(number))]
