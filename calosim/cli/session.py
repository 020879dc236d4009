"""What a training verb may do where: its run folder, the checkpoint it goes on from, and what it is asked for."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from calosim.models.checkpoints import read_checkpoint
from calosim.runs import Run, difference, identity
from calosim.slurm import own_job, starts_again

__all__ = [
    "NAMED",
    "as_list",
    "check_resumed",
    "checkpoint_to_use",
    "elsewhere",
    "folder_of",
    "named_checkpoint",
    "newest",
    "said_words",
    "say_replaced",
    "single_batches",
    "take_processes",
]

#: Checkpoints of a run that have a name.
NAMED = ("best", "last", "hpc")

#: Options whose 1 is one batch, and whose 1.0 all of them; the parser knows no difference.
COUNTS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
#: Settings that a resumed training may not change: Lightning would go on with the old ones, or with other rows.
FIXED = ("model.", "data.", "seed_everything")
#: Among them what is obeyed, or told by content: places of runs and files.
FREE = ("model.init_args.init_from", "model.init_args.start", "data.batch_size")


def said_words(words: Sequence[str]) -> list[str]:
    """Command-line words in which Lightning's ``--optimizer`` and ``--lr_scheduler`` are what they are for here.

    Every model has settings of that kind: two places for one thing would leave one of them ignored.
    """
    names = {"optimizer": "model.optimizer", "lr_scheduler": "model.scheduler"}
    return [re.sub(r"^--(optimizer|lr_scheduler)(?=$|[.=])", lambda m: f"--{names[m[1]]}", word) for word in words]


def as_list(value: Any) -> list[Any]:
    """The classes that an entry of the trainer names, one or several."""
    if not value or value is True:
        return []
    return [v for v in (value if isinstance(value, list) else [value]) if hasattr(v, "get") and v.get("class_path")]


def named_checkpoint(words: Sequence[str]) -> str | None:
    """The last ``--ckpt_path`` of a command line; None without one, or if it is ``null``."""
    named = None
    for word, following in zip(words, [*words[1:], "null"], strict=True):
        option, equals, value = word.partition("=")
        if option == "--ckpt_path":
            named = value if equals else following
    return None if named == "null" else named


def folder_of(verb: str, config: Any, checkpoint: str | None) -> str:
    """The run folder: the one that was named, that of the checkpoint or of the configuration to go on from, or a new one.

    Raises:
        ValueError: If a checkpoint is needed and none is named, or none can be found.
    """
    run = config.get("run") or os.environ.get("CALOSIM_RUN")
    if verb != "fit" and not checkpoint:
        raise ValueError(f"expected --ckpt_path, a checkpoint to {verb}; without one the weights are random")
    if run is not None:
        return run
    if checkpoint in NAMED:
        # `-c RUN/config.yaml --ckpt_path last` goes on with that run, wherever it lies by now.
        own = [path.parent for path in _files(config) if path.name == Run.CONFIG and Run(path.parent).exists]
        if len(own) != 1:
            raise ValueError(
                f"expected --run RUN_FOLDER, whose {checkpoint} checkpoint is meant, or the path of a checkpoint"
            )
        return str(own[0])
    if checkpoint is not None:
        if verb == "fit" and not Run(checkpoint).exists:
            raise ValueError(f"{checkpoint}: lies in no run folder; expected --run RUN_FOLDER to go on in")
        # Judging or resuming a checkpoint belongs to the run that wrote it.
        return str(Run(checkpoint).folder)
    model = config.model.class_path.rpartition(".")[2].lower()
    if job := own_job():
        return _job_folder(f"runs/{model}/slurm-{job['job']}")
    return f"runs/{model}/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def _job_folder(start: str) -> str:
    """The run folder of a training in a job, which must find it again when it starts again.

    The tasks of a step must choose the same one without talking to each other; hence the command's words tell it apart from
    the job's other trainings. The same command once more is a new training, unless the first is one to go on with.
    """
    name = f"{start}-{hashlib.sha256(repr(sys.argv[1:]).encode()).hexdigest()[:6]}"
    alone = "SLURM_STEP_ID" not in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) == 1
    for number in count(1):
        run = Run(name if number == 1 else f"{name}-{number}")
        if not alone and not run.training:
            break
        if run.exists and newest(run):
            break
        if alone:
            with suppress(FileExistsError):
                run.folder.mkdir(parents=True)
                break
    return str(run.folder)


def newest(run: Run) -> str | None:
    """The checkpoint that a run goes on from by itself; None if it does not.

    It does if this job has begun it, and starts again or was told to make room.
    """
    if not run.exists or run.job is None or run.job != own_job() or not (run.hpc or starts_again()):
        return None
    steps = {
        path: read_checkpoint(path).get("global_step", 0) for path in (run.hpc, run.last) if path and path.exists()
    }
    return str(max(steps, key=lambda path: steps[path])) if steps else None


def checkpoint_to_use(run: Run, name: str) -> str:
    """The path of a run's ``best``, ``last`` or ``hpc`` checkpoint; another one, with a line, where it is damaged.

    A training that was killed after the first ``best`` was written, and before ``last``, goes on from that one.

    Raises:
        ValueError: If there is none, or none that can be read.
    """
    wanted = {"best": run.best, "last": run.last, "hpc": run.hpc or run / "hpc_ckpt_1.ckpt"}[name]
    other = run.best if name == "last" else run.last
    missing = f"{wanted}: no such checkpoint"
    if not wanted.exists() and not (name == "last" and other.exists()):
        raise ValueError(f"{missing}; without one, `fit` starts anew in that folder")
    try:
        if not wanted.exists():
            raise ValueError(missing)
        read_checkpoint(wanted)
    except ValueError as error:
        if not other.exists():
            raise
        epoch = read_checkpoint(other).get("epoch", 0)
        print(f"calosim: {error}; {other}, after epoch {epoch + 1}, takes its place", file=sys.stderr)
        return str(other)
    return str(wanted)


def elsewhere(plugins: Any) -> Any:
    """The trainer's plugins but for Slurm's environment: what a run was asked for holds on other machines too.

    Raises:
        ValueError: If that environment is asked for where it is not: Lightning would look for its variables.
    """
    slurm = [plugin for plugin in as_list(plugins) if plugin.class_path.endswith("SLURMEnvironment")]
    if slurm and "SLURM_NTASKS" not in os.environ:
        raise ValueError(
            "SLURMEnvironment (conf/cluster/slurm.yaml): expected a task of Slurm, by srun or calosim submit"
        )
    if not slurm:
        return plugins
    return [plugin for plugin in plugins if plugin not in slurm] or None if isinstance(plugins, list) else None


def take_processes(config: Any) -> None:
    """Makes a training of the processes that torchrun has started, on however many nodes, rather than start others.

    Args:
        config: The verb's parsed settings.

    Raises:
        ValueError: If they have no folder in common: no one of them could tell the others which it chose.
    """
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or world == 1:
        return
    config.trainer.devices, config.trainer.num_nodes = local, world // local
    if not (config.get("run") or config.get("ckpt_path") or os.environ.get("CALOSIM_RUN")):
        raise ValueError(f"expected --run RUN_FOLDER, the same for all {world} processes that torchrun starts")


def check_resumed(run: Run, settings: Mapping[str, Any]) -> None:
    """Refuses to resume a training with other settings than it was begun with, which would not be obeyed.

    Args:
        run: The run, as it was begun.
        settings: All settings of the command that resumes it.

    Raises:
        ValueError: If one differs.
    """
    begun, asked = identity(run.config), identity(settings)
    both = [key for key in begun if key in asked and key.startswith(FIXED) and not key.startswith(FREE)]
    # What is null on one side is a class with settings on the other.
    absent = [
        key for key in {**begun, **asked} if key.startswith("model.") and _absent(key, begun) != _absent(key, asked)
    ]
    keys = [*both, *absent]
    if differs := difference({k: begun.get(k) for k in keys}, {k: asked.get(k) for k in keys}):
        raise ValueError(
            f"{run.folder}: begun with other settings, which a resumed training keeps (it has {differs}); "
            "leave them as they were, or start a new run"
        )


def _absent(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether flat settings have null where others have a class with this setting."""
    above = [key[:end] for end, letter in enumerate(key) if letter == "."]
    return any(settings.get(name, 0) is None for name in above)


def single_batches(config: Any, words: Sequence[str]) -> dict[str, int]:
    """Limits of the trainer that are one batch, as they were said, where the parser has made all batches of them.

    Args:
        config: The verb's parsed settings.
        words: The command line.
    """
    contents = [_read(path) for path in _files(config)]
    return {name: 1 for name in COUNTS if config.trainer.get(name) == 1 and _one(name, contents, words)}


def say_replaced(config: Any) -> None:
    """Says in a line which callbacks of a file are replaced by a later file or the command line."""
    files = [(path, _read(path)) for path in _files(config)]
    kept = {callback.class_path.rpartition(".")[2] for callback in as_list(config.trainer.get("callbacks"))}
    for path, content in files:
        named = [entry for key in ("callbacks", "callbacks+") for entry in _named(content.get("trainer") or {}, key)]
        if gone := [name for name in named if name not in kept]:
            print(f"calosim: {', '.join(gone)} of {path} is replaced by what comes after it", file=sys.stderr)


def _one(name: str, contents: Iterable[Mapping[str, Any]], words: Sequence[str]) -> bool:
    """Whether the last that was said of a number is the whole number 1."""
    said: Any = None
    for content in contents:
        said = (content.get("trainer") or {}).get(name, said)
    for k, word in enumerate(words):
        if word == f"--trainer.{name}" and k + 1 < len(words):
            said = words[k + 1]
        elif word.startswith(f"--trainer.{name}="):
            said = word.partition("=")[2]
    return (isinstance(said, int) and said == 1) or said == "1"


def _named(trainer: Mapping[str, Any], key: str) -> list[str]:
    """Class names of the callbacks of a file."""
    entries = trainer.get(key) or []
    entries = entries if isinstance(entries, list) else [entries]
    paths = [entry.get("class_path", "") if isinstance(entry, dict) else str(entry) for entry in entries]
    return [path.rpartition(".")[2] for path in paths]


def _files(config: Any) -> list[Path]:
    """The files that were named with ``-c``."""
    return [Path(str(path)) for path in config.get("config") or []]


def _read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return content if isinstance(content, dict) else {}
