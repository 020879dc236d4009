"""What is trained and judged: the settings of ``peers.yaml``, and the folders of its tries."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from calosim.data.datamodule import RootDataModule
from calosim.detectors import Detector
from calosim.evaluation.selection import Selection, select_rows
from calosim.io import read_json, write_json
from calosim.options import Protocol

from .protocol import Peer

__all__ = ["CONFIG", "Entry", "Study", "Try"]

#: The settings that the benchmark comes with.
CONFIG = Path(__file__).with_name("peers.yaml")


@dataclass(frozen=True)
class Entry:
    """A peer of the comparison.

    Attributes:
        title: What tables call it.
        peer: Full name of its class.
        lrs: Learning rates that are tried.
        options: Further arguments of the class.
    """

    title: str
    peer: str
    lrs: Sequence[float]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, detector: Detector, lr: float) -> Peer:
        """Makes an untrained peer."""
        module, _, name = self.peer.rpartition(".")
        return getattr(importlib.import_module(module), name)(detector, lr, **self.options)


@dataclass(frozen=True)
class Try:
    """One training: a peer, its minutes and its learning rate.

    Attributes:
        name: The peer's name.
        minutes: Processor time of the training, a thread.
        lr: The learning rate.
        folder: Where its results are.
    """

    name: str
    minutes: float
    lr: float
    folder: Path

    RESULT, UNFINISHED, VALIDATION = "try.json", "unfinished.json", "validation.json"
    IMAGES, WEIGHTS, LOG = "images.npz", "weights.pt", "log.txt"

    @property
    def result(self) -> dict[str, Any] | None:
        """What came of it; None until it is finished."""
        path = self.folder / self.RESULT
        return read_json(path) if path.exists() else None

    @property
    def unfinished(self) -> str | None:
        """Why it was given up, if it was."""
        path = self.folder / self.UNFINISHED
        return read_json(path)["reason"] if path.exists() else None

    @property
    def score(self) -> float | None:
        """What validation rows say, lower being better: NLL where there is one, else WS; infinite if it diverged, None yet."""
        path = self.folder / self.VALIDATION
        if not path.exists():
            return None
        found = read_json(path)
        score = found["val_ws"] if found["nll_unit"] is None else found["val_nll"]
        return math.inf if score is None else score

    def give_up(self, reason: str) -> None:
        """Records why it did not come to its end."""
        write_json(self.folder / self.UNFINISHED, {"reason": reason})


@dataclass(frozen=True)
class Study:
    """The comparison.

    Attributes:
        data: File of showers.
        floor: The same primaries, simulated with another seed.
        shape_floor: The same with the photon sums of the data, if there is such a file.
        out: Folder of the results.
        peers: By name.
        minutes: Training times, each a training of its own.
        tune_minutes: The training time at which learning rates are chosen for all others; each at its own if None.
        threads: Threads of a training or judgement.
        answer_threads: Threads of a trained model that answers; as many as of a training if None.
        jobs: Trainings (or judgements) at once.
        rows: About that many test rows are judged.
        validation_rows: About that many validation rows choose learning rates.
        seed: Seed of everything random.
        classifier_seeds: Trainings of each judge of the classifier test.
        limit_minutes: The run ends after that long, and what is unfinished is recorded as such.
    """

    data: str
    floor: str
    out: str
    peers: Mapping[str, Entry]
    shape_floor: str | None = None
    minutes: Sequence[float] = (2, 10, 30)
    tune_minutes: float | None = None
    threads: int = 1
    answer_threads: int | None = None
    jobs: int = 1
    rows: int = 6000
    validation_rows: int = 1500
    seed: int = 1
    classifier_seeds: int = 5
    limit_minutes: float | None = None

    @classmethod
    def read(cls, path: str | Path, **given: Any) -> Study:
        """Settings of a file, but for those given that are not None; ``peers`` given by name are those that are kept.

        Raises:
            ValueError: If the file or what is given names what does not exist, or a number is not positive.
        """
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if unknown := set(values) - {entry.name for entry in fields(cls)}:
            raise ValueError(f"{path}: unknown settings {', '.join(sorted(unknown))}")
        peers = {name: Entry(**entry) for name, entry in values["peers"].items()}
        kept = given.pop("peers", None) or list(peers)
        if missing := [name for name in kept if name not in peers]:
            raise ValueError(f"{path}: unknown peer {missing[0]!r}; expected some of {', '.join(peers)}")
        values |= {"peers": {name: peers[name] for name in kept}}
        study = replace(cls(**values), **{key: value for key, value in given.items() if value is not None})
        positive = (
            *study.minutes,
            study.tune_minutes or 1,
            study.threads,
            study.jobs,
            study.rows,
            study.validation_rows,
        )
        if min(positive) <= 0:
            raise ValueError(f"{path}: expected positive minutes, threads, jobs and rows, got {min(positive)}")
        return study

    def datamodule(self) -> RootDataModule:
        """The data with its split by primary."""
        data = RootDataModule(self.data)
        data.setup()
        return data

    def judged(self, data: RootDataModule) -> Selection:
        """The test rows."""
        return select_rows(data, Protocol(rows=self.rows))

    def at(self, name: str, minutes: float, lr: float) -> Try:
        """A try."""
        return Try(name, minutes, lr, Path(self.out) / "tries" / f"{name}-{minutes:g}min-lr{lr:g}")

    def tunings(self, name: str, minutes: float) -> list[Try]:
        """The tries among which the learning rate of a peer and training time is chosen."""
        return [self.at(name, self.tune_minutes or minutes, lr) for lr in self.peers[name].lrs]

    def chosen(self, name: str, minutes: float) -> Try | None:
        """The try with the learning rate that validation rows chose; None while one of those it takes may still come."""
        tunings = self.tunings(name, minutes)
        scores = {tried.lr: score for tried in tunings if (score := tried.score) is not None}
        if not scores or not all(tried.lr in scores or tried.unfinished for tried in tunings):
            return None
        return self.at(name, minutes, min(scores, key=lambda lr: scores[lr]))

    @property
    def tries(self) -> list[Try]:
        """All that exist or may: every learning rate at every training time and at the one of the tuning."""
        times = sorted({*self.minutes, *([self.tune_minutes] if self.tune_minutes else [])})
        return [self.at(name, m, lr) for m in times for name, entry in self.peers.items() for lr in entry.lrs]
