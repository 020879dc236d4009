"""The tools of the ``calosim`` command: functions whose arguments are the options."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from calosim.cli.errors import one_line
from calosim.cli.words import TOOLS, checked
from calosim.io import expanded, shipped_words

__all__ = ["resolved", "run", "simulate"]


def run(argv: list[str]) -> None:
    """Runs a tool: its options are the arguments of its function, explained by its docstring.

    The fields of an argument that is a dataclass are options like any other.
    """
    function, parser, groups = _parser(argv[0])
    options = parser.parse_args(shipped_words(argv[1:]))
    if options.get("quiet"):
        os.environ["TQDM_DISABLE"] = "1"  # for what shows progress without being told by an argument
    options.pop("config", None)
    if not 0 <= options.get("seed", 0) < 2**63:
        raise ValueError(f"--seed: expected a whole number from 0 to 2^63 - 1, got {options.seed}")
    if trust := options.pop("trust"):
        names = trust.split(",") if isinstance(trust, str) else trust
        if missing := [name for name in names if importlib.util.find_spec(name.strip().partition(".")[0]) is None]:
            raise ValueError(
                f"--trust: no module {missing[0]!r}; expected modules of the working folder or installed ones"
            )
        # In the environment, so that commands which a command starts have it too.
        os.environ["CALOSIM_TRUST"] = ",".join(names)
    options = expanded(options)
    values = dict(parser.instantiate(options))
    for n, kind in groups.items():
        values[n] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
    function(**values)


def resolved(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """All options of ``calosim VERB WORDS``, as its tool understands them.

    Raises:
        ValueError: If the command would refuse them.
    """
    _, *words = checked([verb, *words])
    try:
        options = _parser(verb)[1].parse_args(shipped_words(list(words)))
    except ArgumentError as error:
        raise ValueError(one_line(str(error))) from None
    return {name: value for name, value in expanded(options).as_dict().items() if name not in ("config", "trust")}


def _parser(verb: str) -> tuple[Callable[..., Any], ArgumentParser, dict[str, Any]]:
    """A tool's function, the parser of its options, and the dataclasses that some of them make, by argument."""
    module, _, name = TOOLS[verb].partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    description = (function.__doc__ or "").split("\n\n")[0]
    parser = ArgumentParser(prog=f"calosim {verb}", description=description, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="Read options from a YAML file.")
    groups: dict[str, Any] = {n: kind for n, kind in get_type_hints(function).items() if is_dataclass(kind)}
    parser.add_function_arguments(function, as_group=False, skip=set(groups))
    for kind in groups.values():
        parser.add_class_arguments(kind, as_group=False, sub_configs=True)
    parser.add_argument("--trust", type=list[str] | str, default=[], help="Modules whose models may be loaded: mine.")
    for action in parser._actions:
        if action.default in (True, False) and isinstance(action.default, bool) and action.option_strings:
            # `--quiet` alone says `--quiet true`.
            action.nargs, action.const = "?", True
    return function, parser, groups


def simulate(
    detector: str = "zn",
    primaries: int | str = 1000,
    responses_per_primary: int = 20,
    split: Literal["test", "val"] | None = None,
    match_sums: int = 0,
    keep_empty: bool = False,
    seed: int = 1,
    out: str = "data/zn.root",
    workers: int = 2,
    quiet: bool = False,
) -> None:
    """Makes showers with the toy Monte Carlo and writes them to a ROOT file.

    Args:
        detector: zn, zp or focal_h.
        primaries: How many primaries to draw from the published mix, or a ROOT or CSV file whose primaries to take: with
            another seed, the Monte Carlo's own floor.
        responses_per_primary: Responses of at least 10 photons to a primary, on average over the published mix, where most
            primaries miss. Given primaries are tried as often: one on course leaves several times as many, others none.
        split: Take only those rows of the file that a training with it holds out by default, to test or to validate.
        match_sums: Keep, for each row of the file, only that many of the responses to its primary, those with the nearest
            photon sums and each for one row: the floor of models that are given the true sums. The more
            responses_per_primary, the nearer. 0 keeps all.
        keep_empty: Write every attempt, those that leave fewer than 10 photons too: six times as many rows in the ZN. What is
            without it is the same, bit for bit.
        seed: Seed; one seed, one data set, whatever the number of workers.
        out: The ROOT file to write.
        workers: Threads.
        quiet: Show no progress.
    """
    from calosim.montecarlo.simulate import simulate_file

    how: dict[str, Any] = {"split": split, "match_sums": match_sums, "keep_empty": keep_empty}
    simulate_file(out, detector, primaries, responses_per_primary, seed, **how, workers=workers, quiet=quiet)
