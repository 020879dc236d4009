"""Run folders: the only place that knows which files a run consists of, and where a result comes from."""

from __future__ import annotations

import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

from calosim.files import read_json, read_yaml

__all__ = ["FORMAT", "Run", "git_hash"]

#: Version of run folders and checkpoints; those of another version are refused in one line.
FORMAT = 2


class Run:
    """A run folder: what was trained, on which data, and what came of it.

    ============================  ====================================================================================
    ``config.yaml``               resolved settings; ``config.resumed-1.yaml`` ... those of resumed sessions
    ``run.json``                  format, versions, git hash, command, seed, model, data set and split
    ``training.json``             time, epochs, steps and samples; there only when the training came to its end
    ``metrics.csv``               what was logged
    ``checkpoints/best.ckpt``     by the validation loss; ``last.ckpt`` is what a killed run resumes from
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
        self.folder = path.parent.parent if path.is_file() else path
        self._file = path if path.is_file() else None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def is_ensemble(self) -> bool:
        """Whether several models simulate together here."""
        return (self / self.ENSEMBLE).is_file()

    @property
    def exists(self) -> bool:
        """Whether a training was begun here."""
        return (self / self.CONFIG).exists() or (self / self.RECORD).exists()

    @property
    def last(self) -> Path:
        """The checkpoint that a killed training resumes from."""
        return self / self.CHECKPOINTS / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation loss."""
        return self / self.CHECKPOINTS / "best.ckpt"

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
        return settings

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the run says of itself.

        Raises:
            ValueError: If it says nothing, or was written by another version of calosim.
        """
        record = read_json(self._there(self.RECORD))
        if record.get("format") != FORMAT:
            raise ValueError(
                f"{self / self.RECORD}: expected a run of format {FORMAT}, got {record.get('format', 1)}; train it anew"
            )
        return record

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
        return {key: data.get(key) for key in ("data_hash", "split_by", "seed", "fractions")}

    def _there(self, name: str) -> Path:
        if not (self / name).is_file():
            raise ValueError(f"{self.folder}: expected a run folder with {name}, which tells what was trained on what")
        return self / name


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
