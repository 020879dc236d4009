"""The tools of the ``calosim`` command, whose options are fields of :mod:`calosim.options`, and ``submit``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from calosim import options
from calosim.cli.parser import FLAG, HELP, ConfigFile, parse
from calosim.io import expanded
from calosim.slurm import TASK, Slurm

__all__ = ["TOOLS", "resolved", "run", "simulate", "submit"]

#: What each tool can be told, and where its function lives, which is imported when it is called: most cost torch.
TOOLS: dict[str, tuple[type, str]] = {
    "simulate": (options.Simulate, "calosim.cli.tools:simulate"),
    "convert": (options.Convert, "calosim.data.reading:convert"),
    "generate": (options.Generate, "calosim.simulation.generate:generate"),
    "merge": (options.Merge, "calosim.simulation.generate:merge"),
    "evaluate": (options.Evaluate, "calosim.evaluation.evaluate:evaluate"),
    "ensemble": (options.Ensemble, "calosim.simulation.simulator:save_ensemble"),
    "explain": (options.Explain, "calosim.explain.explain:explain"),
    "report": (options.Report, "calosim.report.report:report"),
    "export": (options.Export, "calosim.export.o2:export"),
    "compare": (options.Compare, "calosim.studies.compare:compare"),
}
TRAINING = ("fit", "validate", "test", "predict")


def run(subcommand: str, words: Sequence[str]) -> None:
    """Runs a tool."""
    parser = _parser(subcommand)
    given = _checked(parse(parser, words))
    if given.get("quiet"):
        os.environ["TQDM_DISABLE"] = "1"  # for what shows progress without being told by an argument
    if trust := given.pop("trust"):
        names = trust.split(",") if isinstance(trust, str) else trust
        if missing := [name for name in names if importlib.util.find_spec(name.strip().partition(".")[0]) is None]:
            raise ValueError(
                f"--trust: no module {missing[0]!r}; expected modules of the working folder or installed ones"
            )
        # In the environment, so that commands which a command starts have it too.
        os.environ["CALOSIM_TRUST"] = ",".join(names)
    kind, where = TOOLS[subcommand]
    settings = _made(kind, dict(parser.instantiate(given)))
    module, _, name = where.partition(":")
    getattr(importlib.import_module(module), name)(settings)


def resolved(subcommand: str, words: Sequence[str]) -> dict[str, Any]:
    """All options of ``calosim SUBCOMMAND WORDS``, as its tool understands them.

    Raises:
        ValueError: If the command would refuse them.
    """
    given = _checked(parse(_parser(subcommand), words)).as_dict()
    return {name: value for name, value in given.items() if name != "trust"}


def _parser(subcommand: str) -> ArgumentParser:
    """The parser of a tool's options."""
    kind, _ = TOOLS[subcommand]
    parser = ArgumentParser(
        prog=f"calosim {subcommand}",
        usage=f"calosim {subcommand} [-c FILE] [options]",
        description=(kind.__doc__ or "").partition("\n\n    Attributes:")[0].replace("\n    ", "\n"),
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c", "--config", action=ConfigFile, metavar="FILE", help="YAML file of options; later ones win."
    )
    for each in _groups(kind):
        inner = {name for name, _ in _inner(each)}
        parser.add_class_arguments(each, as_group=False, skip=inner, sub_configs=True)
    parser.add_argument("--trust", type=list[str] | str, default=[], help="Modules whose models may be loaded: mine.")
    return parser


def _inner(kind: type) -> Iterator[tuple[str, type]]:
    """Fields of a dataclass that are groups of options."""
    yield from (
        (name, hint) for name, hint in get_type_hints(kind).items() if isinstance(hint, type) and is_dataclass(hint)
    )


def _groups(kind: type) -> list[type]:
    """A dataclass of options, and those that it groups."""
    return [kind, *(group for _, group in _inner(kind))]


def _made(kind: type, values: dict[str, Any]) -> Any:
    """An object of a dataclass, of options of one level."""
    inner = {name: _made(group, values) for name, group in _inner(kind)}
    return kind(**inner, **{field.name: values[field.name] for field in fields(kind) if field.name not in inner})


def _checked(given: Namespace) -> Namespace:
    """Options with paths of the user's home written out, and without the files that they come from.

    Raises:
        ValueError: If the seed is none.
    """
    given.pop("config", None)
    if not 0 <= given.get("seed", 0) < 2**63:
        raise ValueError(f"--seed: expected a whole number from 0 to 2^63 - 1, got {given.seed}")
    return expanded(given)


def simulate(settings: options.Simulate) -> None:
    """Makes showers with the toy Monte Carlo and writes them to a ROOT file.

    Raises:
        ValueError: If options contradict each other, or a file or folder cannot be used.
    """
    from calosim.montecarlo.simulate import simulate_file

    simulate_file(
        settings.out,
        settings.detector,
        settings.primaries,
        settings.responses_per_primary,
        settings.seed,
        split=settings.split,
        match_sums=settings.match_sums,
        keep_empty=settings.keep_empty,
        workers=settings.workers,
        quiet=settings.quiet,
    )


# -- submit ------------------------------------------------------------------------------------------------------------


def submit(words: Sequence[str]) -> None:
    """Submits another subcommand, with its options, as a batch job of Slurm; or shows the script.

    A training runs as one process for each of the job's tasks, and goes on by itself when its job starts again; what is no
    training is one process.

    Args:
        words: The subcommand and its options, and ``--slurm.*`` and ``--dry-run`` anywhere among them.

    Raises:
        ValueError: If the command would be refused, if what is no training is to run several times at once, or if the jobs
            of an array are not those of the command.
    """
    own, command = _parted(words)
    parser = ArgumentParser(
        prog="calosim submit",
        usage="calosim submit SUBCOMMAND [its options] [--slurm.OPTION ...] [--dry-run]",
        description=(submit.__doc__ or "").partition("\n\n    Args:")[0].replace("\n    ", "\n"),
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_class_arguments(Slurm, "slurm")
    parser.add_argument("--dry_run", type=bool, default=False, help="Print the script only.")
    given = parse(parser, own)
    if not command:
        raise ValueError("expected what to submit with its options: calosim submit fit -c conf/teacher.yaml")
    if command[0] not in (*TOOLS, *TRAINING):
        raise ValueError(f"expected one of {', '.join([*TOOLS, *TRAINING])} to submit, got {command[0]!r}")
    settings = parser.instantiate(given).slurm
    subcommand, *rest = command
    check(subcommand, [word.replace(TASK, "0") for word in rest])  # what stands for a number in an array of jobs is one
    _check_array(rest, settings)
    if subcommand in TRAINING:
        command = [subcommand, "-c", "conf/cluster/slurm.yaml", *rest, *_processes(rest, settings)]
    elif max(settings.nodes, settings.tasks or 1) > 1:
        raise ValueError(
            f"{subcommand} is one process: expected 1 as --slurm.nodes and --slurm.tasks; --slurm.array makes several jobs"
        )
    else:
        settings = replace(settings, tasks=1)
    if given.dry_run:
        print(settings.script(command, requeue=subcommand == "fit"), end="")
        return
    job, script = settings.submit(command, requeue=subcommand == "fit")
    print(f"job {job}: {script}, its log is beside it")


def check(subcommand: str, words: Sequence[str]) -> None:
    """Refuses a command as it would refuse itself, without running it.

    Raises:
        ValueError: If it would.
    """
    if subcommand in TOOLS:
        resolved(subcommand, words)
    else:
        from calosim.cli.train import parsed  # with torch and lightning

        parsed(subcommand, words)


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of the words behind ``submit``: its own options, and the command that is submitted."""
    own: list[str] = []
    command: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        mine = re.match(r"--(slurm([.=]|$)|dry[-_]run)", word) or (HELP.match(word) and not command)
        (own if mine else command).append(word)
        if mine and "=" not in word and rest and not FLAG.match(rest[0]) and word.startswith("--slurm"):
            own.append(rest.pop(0))
    return own, command


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
        shards = [options.Shard.read(text.replace(TASK, str(number))) for number in settings.numbers]
        count = shards[0].count
        if {shard.number for shard in shards} != set(range(1, count + 1)):
            raise ValueError(f"--slurm.array: expected 1-{count}, the shards of {text}, got {settings.array}")


def _processes(words: Sequence[str], settings: Slurm) -> list[str]:
    """The trainer's options for the job's tasks, but for those that were given."""
    tasks = {"--trainer.devices": settings.devices, "--trainer.num_nodes": settings.nodes}
    given = {word.partition("=")[0] for word in words}
    return [part for option, number in tasks.items() if option not in given for part in (option, str(number))]
