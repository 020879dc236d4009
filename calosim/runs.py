"""Run folders: the only place that knows which files a run consists of, and where a result comes from."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from calosim import __version__
from calosim.io import PART, atomic_write, claim, csv_text, read_csv, read_json, read_yaml, release
from calosim.particles import particle_code

__all__ = ["FORMAT", "OLD_NAMES", "SPLIT", "Run", "difference", "git_hash", "identity", "origin", "renamed"]

#: Version of run folders and checkpoints; those of another version are refused in one line.
FORMAT = 2

#: Names that version 0.2 wrote, of settings, of parts of a model and of the modules of classes, and today's.
OLD_NAMES = {
    "coordinates": "representation",
    "noise_removal": "requantization",
    "calosim.shapes": "calosim.representations",
    "calosim.models.muon": "calosim.models.optim",
    "calosim.models.schedules": "calosim.models.optim",
    "calosim.models.photons": "calosim.models.photon_sum",
    "calosim.showers": "calosim.data",
}

#: What loggers and trainings write before they say what they train; W&B and TensorBoard among them.
EARLY = ("hparams.yaml", "metrics.csv", "wandb", "events.out.tfevents.*")

#: What determines which rows train, validate and test.
SPLIT = ("data_hash", "split_by", "seed", "fractions")

#: Settings of a run that change where it writes and what it shows, but no weight.
_ASIDE = {
    "": {"run", "quiet", "ckpt_path", "weights_only"},
    "trainer": {
        "default_root_dir",
        "enable_autolog_hparams",
        "enable_model_summary",
        "enable_progress_bar",
        "log_every_n_steps",
        "logger",
        "model_registry",
        "profiler",
    },
    # Files are told by their content, see `files_of`.
    "data": {"files", "cache_dir"},
}


class Run:
    """A run folder: what was trained, on which data, and what came of it.

    ============================  ====================================================================================
    ``config.yaml``               resolved settings, of the last session if it was resumed
    ``run.json``                  format, versions, git hash, command, seed, model, data set and split; ``sessions`` that
                                  resumed it, with their first step and what they changed
    ``training.json``             time, epochs, steps and samples; there only when the training came to its end
    ``metrics.csv``               what was logged; ``hparams.yaml`` the settings, as Lightning's loggers write them
    ``checkpoints/best.ckpt``     by the validation loss; ``last.ckpt`` is what a killed run resumes from
    ``hpc_ckpt_1.ckpt``           of a training that made room for others, until it has come to its end; Lightning's name
    ``pictures``                  drawn while it was trained
    ``evaluation``                where ``calosim evaluate`` is expected to write
    ============================  ====================================================================================

    Args:
        path: The folder, a checkpoint in it, or the folder of an ensemble.
    """

    CONFIG, RECORD, TRAINING, METRICS = "config.yaml", "run.json", "training.json", "metrics.csv"
    CHECKPOINTS, PICTURES, PREDICTIONS = "checkpoints", "pictures", "predictions.npz"
    EVALUATION, VALIDATION, ENSEMBLE = "evaluation", "validation", "simulator.json"

    def __init__(self, path: str | Path):
        path = Path(path)
        # A checkpoint that was taken out of its run has what is beside it.
        inside = path.parent.parent if path.parent.name == self.CHECKPOINTS else path.parent
        self.folder = inside if path.is_file() else path
        self._file = path if path.is_file() else None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def is_ensemble(self) -> bool:
        """Whether several models simulate together here; one of their checkpoints alone is none."""
        return self._file is None and (self / self.ENSEMBLE).is_file()

    @property
    def exists(self) -> bool:
        """Whether a training was begun here."""
        return (self / self.CONFIG).exists() or (self / self.RECORD).exists()

    @property
    def begun_only(self) -> bool:
        """Whether a training that was begun here left nothing that could be used or gone on with."""
        checkpoints = list((self / self.CHECKPOINTS).glob("*.ckpt"))
        return self.exists and not checkpoints and not self.hpc and not (self / self.TRAINING).exists()

    @property
    def is_bare(self) -> bool:
        """Whether a training, if one was begun here, had not yet said what it is: only what comes before that is here."""
        names = {path.name for path in self.folder.glob("*") if not path.name.endswith(PART)}
        said = {self.CONFIG, self.RECORD}
        return not said <= names and all(any(fnmatch(name, early) for early in EARLY) for name in names - said)

    def claim(self) -> int:
        """Makes the folder and keeps other processes out of it until :meth:`release`, or until this one ends.

        Returns:
            What :meth:`release` takes.

        Raises:
            ValueError: If another process has it.
        """
        return claim(self.folder, "another process trains there now; choose another --run")

    def release(self, handle: int) -> None:
        """Lets others in; a folder in which nothing came to be is removed."""
        release(self.folder, handle)

    def clear(self) -> None:
        """Removes what a training that was only begun wrote."""
        for name in (self.CONFIG, self.RECORD, self.METRICS, "hparams.yaml"):
            (self / name).unlink(missing_ok=True)

    @property
    def last(self) -> Path:
        """The checkpoint that a killed training resumes from."""
        return self / self.CHECKPOINTS / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation loss."""
        return self / self.CHECKPOINTS / "best.ckpt"

    @property
    def hpc(self) -> Path | None:
        """The checkpoint of a training that made room for others and has not come to its end."""
        return max(self.folder.glob("hpc_ckpt_*.ckpt"), key=_number, default=None)

    def next_hpc(self) -> Path:
        """Where the next one of them is written."""
        return self / f"hpc_ckpt_{_number(self.hpc) + 1 if self.hpc else 1}.ckpt"

    def keep_hpc(self, kept: Path | None) -> None:
        """Removes all of them but one."""
        for path in self.folder.glob("hpc_ckpt_*.ckpt"):
            if path != kept:
                path.unlink()

    @property
    def checkpoint(self) -> Path:
        """The checkpoint to use: the file that was named, else the best by validation, else the last.

        Raises:
            ValueError: If there is none.
        """
        for path in (self._file, self.best, self.last):
            if path is not None and path.is_file():
                return path
        raise ValueError(f"{self.folder}: expected a checkpoint or a run folder with {self.CHECKPOINTS}/best.ckpt")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved settings.

        Raises:
            ValueError: If there are none.
        """
        path = self._there(self.CONFIG)
        settings = read_yaml(path)
        if lacks := {"model", "data"} - set(settings if isinstance(settings, dict) else ()):
            raise ValueError(f"{path}: expected the settings of a training; it lacks {', '.join(sorted(lacks))}")
        return renamed(settings)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the run says of itself.

        Raises:
            ValueError: If it says nothing, or was written by another version of calosim.
        """
        record = read_json(self._there(self.RECORD))
        found = record.get("format", 1) if isinstance(record, dict) else type(record).__name__
        if found != FORMAT:
            raise ValueError(f"{self / self.RECORD}: expected a run of format {FORMAT}, got {found}; train it anew")
        return renamed(record)

    @property
    def job(self) -> dict[str, str] | None:
        """The job of a cluster in which it was begun, or last gone on with."""
        record = read_json(self / self.RECORD) if (self / self.RECORD).is_file() else {}
        return [record, *record.get("sessions", [])][-1].get("job")

    @property
    def wandb(self) -> str | None:
        """The identifier of the run at Weights & Biases, as the newest of its folders has it."""
        last = max((self / "wandb").glob("*run-*-*"), key=lambda path: path.stat().st_mtime, default=None)
        return None if last is None else last.name.rpartition("-")[2]

    @property
    def mlflow(self) -> str | None:
        """The identifier of the run at MLflow, as the last session that logged there told it."""
        return read_json(self / self.RECORD).get("mlflow") if (self / self.RECORD).is_file() else None

    @property
    def training(self) -> dict[str, Any] | None:
        """Time and samples of a training that came to its end, else None."""
        path = self / self.TRAINING
        return read_json(path) if path.exists() else None

    @property
    def metrics(self) -> list[Path]:
        """The files of what was logged in training: the first session's, then those of the resumed ones."""
        later = sorted(self.folder.glob(f"fit-*/{self.METRICS}"))
        return [path for path in (self / self.METRICS, *later) if path.is_file()]

    def join_metrics(self) -> None:
        """Makes one file of what all sessions logged in training; steps that a resumed one repeated stand once."""
        first, *later = self.metrics or [self / self.METRICS]
        if not later:
            return self._forget_sessions()  # of which the last had nothing to log
        rows: list[dict[str, str]] = []
        for path in (first, *later):
            session = read_csv(path)
            begin = min((int(row["step"]) for row in session), default=math.inf)
            rows = [row for row in rows if int(row["step"]) < begin] + session
        names = sorted({name for row in rows for name in row})
        text = csv_text(names, [[row.get(name, "") for name in names] for row in rows])
        atomic_write(first, text.replace("\n", "\r\n"))  # as Lightning ends lines
        self._forget_sessions()

    def _forget_sessions(self) -> None:
        """Removes the folders of resumed sessions, whose settings stand in files of their own."""
        for folder in self.folder.glob("fit-*"):
            shutil.rmtree(folder)

    @property
    def particle(self) -> int | None:
        """PDG code of the only particle type that was trained with; None for all, or if the folder does not tell."""
        return self.record["data"]["particle"] if (self / self.RECORD).is_file() else None

    @property
    def split(self) -> dict[str, Any] | None:
        """What determines the test rows: data hash, kind, seed and fractions; None if the folder does not tell."""
        try:
            data = self.record["data"]
        except (ValueError, KeyError):
            return None
        return {key: data.get(key) for key in SPLIT}

    def _there(self, name: str) -> Path:
        if not (self / name).is_file():
            raise ValueError(f"{self.folder}: expected a run folder with {name}, which tells what was trained on what")
        return self / name


def renamed(values: Any) -> Any:
    """What version 0.2 stored, with today's names; what has them already stays as it is.

    Args:
        values: Settings, a record, or weights by name; keys are renamed up to their first dot, and modules of ``class_path``.
    """
    if isinstance(values, Mapping):
        return {
            _new_name(key): _new_module(value) if key == "class_path" else renamed(value)
            for key, value in values.items()
        }
    return [renamed(value) for value in values] if isinstance(values, list) else values


def _new_name(key: Any) -> Any:
    first, *rest = key.split(".", 1) if isinstance(key, str) else (key,)
    return ".".join([OLD_NAMES[first], *rest]) if first in OLD_NAMES else key


def _new_module(path: Any) -> Any:
    module, _, name = str(path).rpartition(".")
    return f"{OLD_NAMES[module]}.{name}" if module in OLD_NAMES else path


def _number(path: Path) -> int:
    """The number at the end of a file's name."""
    return int(re.sub(r"\D", "", path.stem) or 0)


def git_hash() -> str | None:
    """The commit of calosim's sources, with ``+changes`` if they were edited since; None outside of a checkout of them."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A repository around site-packages is not calosim's: it does not track this file.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def origin(git: bool = True, **further: Any) -> dict[str, Any]:
    """What a result says of how it came about, after the calosim that made it.

    Args:
        git: Whether the commit of the sources is told; not in data files, which are known by a hash of their bytes.
        **further: What else.
    """
    return {"calosim": __version__, **({"git": git_hash()} if git else {}), **further}


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that determine a training's result, flat: ``{"trainer.max_epochs": 2}``.

    Args:
        settings: All settings, of :func:`resolved` or of a run's ``config.yaml``.
    """
    flat: dict[str, Any] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                if key not in _ASIDE.get(name, ()) and key != "dirpath":  # where checkpoints lie
                    visit(f"{name}.{key}".lstrip("."), inner)
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value):
                visit(f"{name}.{number}", item)
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value

    visit("", settings)
    with suppress(ValueError):  # of no particle, which is refused where it is read
        if flat.get("data.particle") is not None:
            flat["data.particle"] = particle_code(flat["data.particle"])
    return flat


def difference(made: Mapping[str, Any], wanted: Mapping[str, Any], most: int = 3) -> str:
    """What differs between two flat settings, in words; an empty text if nothing does.

    Two names of one file or folder are the same.
    """
    keys = [key for key in dict.fromkeys([*wanted, *made]) if not _alike(made.get(key), wanted.get(key))]
    words = [f"{key}={made.get(key)!r} instead of {wanted.get(key)!r}" for key in keys[:most]]
    return ", ".join([*words, f"and {len(keys) - most} more"] if len(keys) > most else words)


def _alike(made: Any, wanted: Any) -> bool:
    """Whether two values of a setting mean the same."""
    if isinstance(made, list) and isinstance(wanted, list):
        return len(made) == len(wanted) and all(map(_alike, made, wanted))
    if made == wanted or not (isinstance(made, str) and isinstance(wanted, str)):
        return bool(made == wanted)
    return os.path.exists(made) and os.path.exists(wanted) and os.path.samefile(made, wanted)
