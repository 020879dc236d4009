"""What ``--help`` says of a verb, read from its source: it answers at once, without importing torch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping

from calosim.cli.signatures import Option, descriptions, method_options, options, summary
from calosim.cli.words import MODELS, TOOLS, TRAINER

__all__ = ["help_text"]

DATA = ("calosim.data.datamodule", "RootDataModule")
JOB = ("calosim.slurm", "Slurm")
CONFIG = "FILE: read options from a YAML file; later ones win, and options on the command line."
TRUST = "Modules whose models may be loaded: mine. (list[str] | str, [] by default)"
#: Options of trainings that are no one's arguments.
RUNS = {
    "-c": CONFIG,
    "--model": f"NAME: {', '.join(MODELS)}, or a class of your own; `calosim fit --model.help NAME` lists a model's options.",
    "--run": "Run folder; by default runs/<model>/<date>-<time>-<id>, new for every run.",
    "--quiet": "Show no progress.",
    "--seed_everything": "Seed of weights, order and draws.",
    "--optimizer, --lr_scheduler": "Short for --model.optimizer and --model.scheduler, with their options: --optimizer.lr.",
    "--best, --last": "Settings of the two checkpoints: --best.monitor.",
    "--print_config": "Print all settings after all other options, and exit.",
}
#: Arguments of the trainer's methods.
OWN = {
    "ckpt_path": "`last`, `best` or a file: the checkpoint to go on from, or to judge.",
    "verbose": "Print the metrics. (bool, true by default)",
}


def help_text(verb: str, what: str) -> str:
    """The help of a verb.

    Args:
        verb: The verb.
        what: What it does, in a line; a tool's docstring says it itself.
    """
    if verb in TOOLS:
        module, _, name = TOOLS[verb].partition(":")
        lines = [f"usage: calosim {verb} [-c FILE] [options]", "", summary(module, name), ""]
        lines += _options({"-c": CONFIG, **_tool(module, name), "--trust": TRUST})
        return "\n".join(lines)
    if verb == "submit":
        lines = ["usage: calosim submit VERB [options of VERB] [--slurm.OPTION ...] [--dry-run]", ""]
        lines += [what[0].upper() + what[1:] + ".", ""]
        lines += _options(_said(options(*JOB) or {}, descriptions(*JOB), "--slurm."))
        lines += _options({"--slurm": "FILE: read these from a YAML file.", "--dry-run": "Print the script only."})
        return "\n".join(lines)
    lines = [f"usage: calosim {verb} -c FILE [options]", "", what[0].upper() + what[1:] + ".", ""]
    own = method_options(*TRAINER, verb) or {}
    lines += _options(RUNS | {f"--{name}": text for name, text in OWN.items() if name in own})
    lines += ["", "data:", *_options(_said(options(*DATA) or {}, descriptions(*DATA), "--data."))]
    lines += ["", "trainer, by Lightning (conf/base.yaml sets some of them):"]
    # Lightning explains at length, with types and defaults.
    said = {name: text.partition(". ")[0].rstrip(".") + "." for name, text in descriptions(*TRAINER).items()}
    lines += _options({f"--trainer.{name}": said.get(name, "") for name in options(*TRAINER) or {}})
    return "\n".join(lines)


def _tool(module: str, name: str) -> dict[str, str]:
    """The options of a tool, those of settings among them."""
    found: dict[str, str] = {}
    texts = descriptions(module, name)
    for option in (options(module, name) or {}).values():
        if not option.settings:
            found |= _said({option.name: option}, texts, "--")
            continue
        for where, kind in option.alternatives:
            found |= _said(option.settings, descriptions(where, getattr(kind, "id", "")), "--")
    return found


def _said(found: Mapping[str, Option], texts: Mapping[str, str], prefix: str) -> dict[str, str]:
    """What is said of options, with type and default."""
    return {f"{prefix}{name}": f"{texts.get(name, '')} ({option.said})".strip() for name, option in found.items()}


def _options(found: Mapping[str, str]) -> Iterable[str]:
    """Lines of names, with what is said of them beside or below."""
    width = min(max(shutil.get_terminal_size().columns, 48), 120)
    for name, text in found.items():
        begin = f"  {name:<22}" if len(name) < 22 else f"  {name}\n{'':24}"
        yield begin + ("\n" + " " * 24).join(textwrap.wrap(text, width - 24, break_on_hyphens=False))
