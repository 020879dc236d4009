"""The fast simulation: photon sum and shower from trained models, for a primary or for ten million."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from calosim.data.record import check_primaries, row_name
from calosim.io import atomic_write, read_json, take_place, temporary_folder, write_json
from calosim.models.acceptance import Acceptance
from calosim.models.base import CalosimModule, evaluating, joined, not_seen
from calosim.models.checkpoints import digest, lineages, read_checkpoint, weights_of
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.options import Ensemble
from calosim.particles import particle_code, particle_name
from calosim.processes import look_here_last, one_thread
from calosim.runs import Run, origin, renamed

__all__ = ["FastSimulator", "devices_of", "pick_device", "read_ensemble", "save_ensemble"]


#: Of fewer rows a call costs more than what they have to do.
_LEAST_ROWS = 32


class FastSimulator:
    """Two stages: a photon sum, then an image from the shower model; before them, if there is a model of it, whether there is a
    response at all.

    With members it is the published ensemble: the model fine-tuned for the particle where there is one, else the
    baseline.

    Args:
        shower: The shower model, of all particles that have none of their own.
        photons: The photon-sum model; without it, photon sums must be given to :meth:`sample`.
        requantization: A key of the model's :attr:`~calosim.models.shower.ShowerModel.requantizations`,
            or one for each of some PDG codes, with the key 0 for all others (the model's own, if not given).
        members: Shower models of some PDG codes.
        acceptance: The acceptance model; without it every primary leaves a response.

    Raises:
        ValueError: If the models are of different detectors, or a requantization is unknown.

    References:
        Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
    """

    def __init__(
        self,
        shower: ShowerModel,
        photons: PhotonSum | None = None,
        requantization: int | Mapping[int, int] | None = None,
        members: Mapping[int, ShowerModel] | None = None,
        acceptance: Acceptance | None = None,
    ):
        self.shower, self.photons, self.detector, self.members = shower, photons, shower.detector, dict(members or {})
        self.acceptance = acceptance
        #: All that there are, by name.
        self.models: dict[str, CalosimModule] = {"shower model": shower}
        self.models |= {f"member {particle_name(code)}": member for code, member in self.members.items()}
        beside = {"photon-sum model": photons, "acceptance model": acceptance}
        self.models |= {name: part for name, part in beside.items() if part is not None}
        for name, other in self.models.items():
            if other.detector != shower.detector:
                raise ValueError(
                    f"expected models of one detector, got a shower model of {shower.detector.title} and a {name} of "
                    f"{other.detector.title}"
                )
        asked = requantization if isinstance(requantization, Mapping) else {0: requantization}
        chosen = {code: method for code, method in asked.items() if method is not None}
        for method in chosen.values():
            shower.check_requantization(method)
        own = shower.requantization
        #: By PDG code, 0 standing for all others; empty where counts come out exactly.
        self.requantization: dict[int, int] = {} if own is None else {0: own, **chosen}
        self._processes: Processes | None = None

    @classmethod
    def load(
        cls,
        run_folder: str | Path,
        photons: str | Path | None = None,
        requantization: int | Mapping[int, int] | None = None,
        device: str | torch.device = "cpu",
        acceptance: str | Path | None = None,
        devices: int = 1,
    ) -> Self:
        """Loads trained models.

        Args:
            run_folder: Run folder or checkpoint of the shower model, or the folder of an ensemble, see
                :func:`save_ensemble`.
            photons: Run folder or checkpoint of the photon-sum model; the ensemble's if None.
            requantization: See :class:`FastSimulator`; a mapping without the key 0 leaves the ensemble's choice to the
                particles that it does not name, None to all.
            device: Where to simulate.
            acceptance: Run folder or checkpoint of the acceptance model.
            devices: Processes that share the rows of a sample, on a GPU of that machine each, or each with its share of a CPU's
                threads.

        Raises:
            ValueError: If a folder holds no such model, or there are fewer devices.
        """
        names = devices_of(torch.device(device), devices)
        run = Run(run_folder)
        record = read_ensemble(run) if run.is_ensemble else None
        if not isinstance(requantization, int) and (requantization is None or 0 not in requantization):
            stored = record["requantization"] if record else {}
            requantization = {**{int(code): method for code, method in stored.items()}, **(requantization or {})}
        if record and photons is None and record["photons"]:
            photons = run / record["photons"]
        members = record["members"] if record else {}
        simulator = cls(
            ShowerModel.load(run / record["default"] if record else run_folder, device),
            None if photons is None else PhotonSum.load(photons, device),
            requantization,
            {int(code): ShowerModel.load(run / name, device) for code, name in members.items()},
            None if acceptance is None else Acceptance.load(acceptance, device),
        )
        if devices > 1:
            load = partial(cls.load, run_folder, photons, requantization, acceptance=acceptance)
            simulator._processes = Processes(load, names)
        return simulator

    @property
    def workers(self) -> int:
        """How many batches are computed at once."""
        return self._processes.workers if self._processes else workers_on(self.device)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.shower.device

    def sample(
        self,
        particles: np.ndarray,
        pdg: np.ndarray,
        seed: int,
        rows: np.ndarray | None = None,
        photon_sum: np.ndarray | None = None,
        batch_size: int = 256,
    ) -> np.ndarray:
        """Simulates one response for each row.

        Every member answers its own rows in batches of its own, as it would alone.

        Args:
            particles: Features with shape (N, 9), see :data:`calosim.data.record.FEATURES`.
            pdg: PDG codes with shape (N,); they choose requantization and member.
            seed: Seed of the draws.
            rows: Row numbers with shape (N,) that key the draws together with the seed; 0 to N - 1 if not given.
            photon_sum: Photon sums with shape (N,); drawn from the photon-sum model if not given, 0 where the acceptance model
                draws no response.
            batch_size: Rows that a thread simulates at once; a matter of memory and speed, not of the result.

        Returns:
            Photon counts with shape (N, nx, ny), int32.

        Raises:
            ValueError: If there is neither a photon-sum model nor photon sums, or the arguments are not what they must be.
        """
        if photon_sum is None and self.photons is None:
            raise ValueError("expected a photon-sum model or given photon sums; name its run folder with --photons")
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        particles, pdg = np.asarray(particles, dtype=np.float64), _whole("pdg", pdg, (len(particles),))
        rows = np.arange(len(pdg)) if rows is None else _whole("rows", rows, pdg.shape)
        check_primaries(particles, pdg, "particles", partial(row_name, 0))
        if photon_sum is not None:
            photon_sum = _whole("photon_sum", photon_sum, pdg.shape, range(2**31))
        if self._processes and len(pdg):
            return self._processes.sample(particles, pdg, seed, rows, photon_sum, batch_size)
        images = np.empty((len(pdg), *self.detector.shape), dtype=np.int32)
        default = self.requantization.get(0, 0)
        method = np.array([self.requantization.get(int(code), default) for code in pdg], dtype=np.int64)
        if photon_sum is None and self.photons is not None:
            self.photons.networks(seed)  # are drawn by torch's own generator, once and not by several threads

        def simulate(model: ShowerModel, batch: np.ndarray) -> None:
            features = torch.from_numpy(particles[batch]).to(self.device, torch.float32)
            keys = torch.from_numpy(rows[batch]).to(self.device)
            total = self.sums(features, seed, keys) if photon_sum is None else photon_sum[batch]
            removal = torch.from_numpy(method[batch]).to(self.device) if self.requantization else None
            total = torch.as_tensor(total, device=self.device)
            images[batch] = model.generate(features, total, seed, keys, removal).cpu().numpy()

        jobs = []
        for model, mine in self.groups(pdg):
            own = np.flatnonzero(mine)
            # No larger than what leaves something to do for all, and large enough to be worth a call.
            size = min(batch_size, max(_LEAST_ROWS, -(-len(own) // workers_on(self.device))))
            jobs += [partial(simulate, model, own[start : start + size]) for start in range(0, len(own), size)]
        with ExitStack() as modes:  # set once, not by every thread
            for part in self.models.values():
                modes.enter_context(evaluating(part))
            run_side_by_side(jobs, self.device)
        return images

    def groups(self, pdg: np.ndarray) -> list[tuple[ShowerModel, np.ndarray]]:
        """The shower models, and which rows of particles (N,) each of them answers, shape (N,)."""
        members = [(member, pdg == code) for code, member in self.members.items()]
        return [(self.shower, ~np.isin(pdg, list(self.members))), *members]

    def sums(self, features: Tensor, seed: int, rows: Tensor) -> Tensor:
        """Photon sums (B,) of both models before the shower, 0 where the acceptance model draws no response."""
        assert self.photons is not None
        total = self.photons.sample(features, seed, rows)
        return total if self.acceptance is None else torch.where(self.acceptance.sample(features, seed, rows), total, 0)

    def fingerprint(self) -> str:
        """A hash of all that makes a response: weights and settings of the models, and the requantization."""
        found = hashlib.blake2b(json.dumps(sorted(self.requantization.items())).encode(), digest_size=16)
        for name, part in self.models.items():
            settings = json.dumps(part.init, sort_keys=True, default=str)
            found.update(f"{name} {digest(part.state_dict(), f'{type(part).__name__} {settings}')}".encode())
        return found.hexdigest()

    def outside(self, particles: np.ndarray, pdg: np.ndarray) -> dict[str, int]:
        """Counts primaries outside of what the models that answer them were trained on.

        Args:
            particles: Features with shape (N, 9).
            pdg: PDG codes with shape (N,).

        Returns:
            How many there are, by model and reason; see :func:`calosim.models.base.not_seen`.
        """
        counts: dict[str, int] = {}
        own: dict[CalosimModule, Any] = dict(self.groups(pdg))
        for name, model in self.models.items():
            mine = own.get(model, slice(None))
            for reason, rows in not_seen(model.seen, particles[mine], pdg[mine]).items():
                counts[f"{name}: {reason}"] = int(rows.sum())
        return counts


def _whole(name: str, values: ArrayLike, shape: tuple[int, ...], allowed: range | None = None) -> np.ndarray:
    """An argument as int64 with the expected shape.

    Raises:
        ValueError: If it has another shape, or holds something else than whole numbers, or than those that are allowed.
    """
    array = np.asarray(values)
    if array.shape != shape:
        raise ValueError(f"expected {name} with shape {shape}, got {array.shape}")
    whole = array.dtype.kind in "iuf" and (array == np.rint(array)).all()
    if not whole or (allowed and ((array < allowed.start) | (array >= allowed.stop)).any()):
        bound = f" from {allowed.start} to {allowed.stop - 1}" if allowed else ""
        raise ValueError(f"expected whole numbers{bound} in {name}, got {array.ravel()[:5].tolist()}")
    return array.astype(np.int64)


def read_ensemble(run: Run) -> dict[str, Any]:
    """The record of an ensemble.

    Raises:
        ValueError: If it is damaged.
    """
    path = run / Run.ENSEMBLE
    record = renamed(read_json(path))
    missing = {"default", "members", "photons", "requantization"} - set(record if isinstance(record, dict) else ())
    if missing:
        raise ValueError(f"{path}: expected the record of an ensemble, it lacks {', '.join(sorted(missing))}")
    return record


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes a GPU if there is one.

    Raises:
        ValueError: If this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here ({str(error).splitlines()[0]})") from None
    return torch.device(name)


def workers_on(device: torch.device) -> int:
    """How many batches are computed at once: torch's threads on a CPU, one on another device."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def run_side_by_side(jobs: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Runs jobs that do not depend on each other.

    Threads with batches of their own do not wait for each other, see :func:`calosim.processes.one_thread`.

    Args:
        jobs: What is to be run, in any order.
        device: Where; elsewhere than on a CPU one follows the other.
    """
    workers = min(workers_on(device), len(jobs))
    with one_thread() if device.type == "cpu" else nullcontext():
        if workers < 2:
            for job in jobs:
                job()
            return
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda job: job(), jobs):
                pass


#: In a process of :class:`Processes`, its simulation.
_OWN: list[FastSimulator] = []


def devices_of(device: torch.device, count: int) -> list[str]:
    """The names of several devices of one kind; a CPU is as many as one likes.

    Raises:
        ValueError: If this machine has fewer.
    """
    if count < 1:
        raise ValueError(f"expected at least one device, got {count}")
    if device.type == "cpu":
        return ["cpu"] * count
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > there:
        raise ValueError(f"expected at most {there} devices of type {device.type}, which are here, got {count}")
    return [f"{device.type}:{number}" for number in range(count)]


class Processes:
    """Processes that simulate, each with models of its own.

    Args:
        load: Makes a process's simulation: called with the device. It is pickled.
        devices: Names of the devices, see :func:`devices_of`. On a CPU the processes share torch's threads.
    """

    def __init__(self, load: Callable[..., FastSimulator], devices: list[str]):
        threads = max(1, workers_on(torch.device(devices[0])) // len(devices))
        #: Batches that are computed at once.
        self.workers = threads * len(devices)
        self._threads = threads
        context = get_context("spawn")  # a forked process cannot use CUDA, nor threads that its parent has
        queue = context.Queue()
        for name in devices:
            queue.put(name)
        self._pool = ProcessPoolExecutor(len(devices), context, _begin, (load, queue, threads))

    def sample(
        self,
        particles: np.ndarray,
        pdg: np.ndarray,
        seed: int,
        rows: np.ndarray,
        photon_sum: np.ndarray | None,
        batch_size: int,
    ) -> np.ndarray:
        """As :meth:`FastSimulator.sample`, whose arguments are checked already."""
        size = max(1, min(batch_size * self._threads, -(-len(pdg) // self.workers)))
        cuts = range(size, len(pdg), size)
        sums = repeat(None) if photon_sum is None else np.split(photon_sum, cuts)
        shares = (np.split(array, cuts) for array in (particles, pdg, rows))
        return np.concatenate(list(self._pool.map(partial(_answer, seed, batch_size), *shares, sums)))


def _begin(load: Callable[..., FastSimulator], devices: Queue[str], threads: int) -> None:
    """Makes a process's simulation, on the next device."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who gave the command interrupts, and is told
    torch.set_num_threads(threads)
    look_here_last()
    _OWN.append(load(device=devices.get()))


def _answer(
    seed: int, batch_size: int, particles: np.ndarray, pdg: np.ndarray, rows: np.ndarray, sums: np.ndarray | None
) -> np.ndarray:
    """A process's share of a sample."""
    return _OWN[0].sample(particles, pdg, seed, rows, sums, batch_size)


def save_ensemble(options: Ensemble) -> None:
    """Makes a folder of models that simulate together: one for each of some particles, the default for all others.

    Raises:
        ValueError: If the folder exists, a particle is unknown, or the models do not fit together.
    """
    folder, default, members, photons = options.folder, options.default, options.members, options.photons
    target = Path(folder)
    if target.exists():
        raise ValueError(f"{folder}: exists already; expected a new folder for the ensemble")
    codes = {particle_code(name): Run(run) for name, run in members.items()}
    if len(codes) < len(members):
        raise ValueError(
            f"expected one member for each particle, got one particle twice among {', '.join(map(str, members))}"
        )
    for code, run in codes.items():
        line = lineages(run.checkpoint)
        if line and (trained := line[-1]["particle"]) not in (None, code):
            raise ValueError(
                f"{run.folder}: expected a member trained on {particle_name(code)} or on all particles, got one of "
                f"{particle_name(trained)}"
            )
    # Loaded once here, so that what does not fit together is refused by its own name.
    together = FastSimulator(
        ShowerModel.load(default),
        PhotonSum.load(photons) if photons else None,
        options.requantization.by_code(),
        {code: ShowerModel.load(run.checkpoint) for code, run in codes.items()},
    )
    sources = {"default.ckpt": Run(default)}
    sources |= {f"{particle_name(code)}.ckpt": run for code, run in codes.items()}
    if photons:
        sources["photons.ckpt"] = Run(photons)
    record = origin() | {
        "default": "default.ckpt",
        "members": {str(code): f"{particle_name(code)}.ckpt" for code in codes},
        "photons": "photons.ckpt" if photons else None,
        "requantization": {str(code): method for code, method in together.requantization.items()},
        "sources": {name: str(run.checkpoint.resolve()) for name, run in sources.items()},
        "weights": weights_of((run.checkpoint for run in sources.values()), target),
    }
    with temporary_folder(target.parent, folder) as temporary:
        made = temporary / target.name
        made.mkdir()
        for name, run in sources.items():
            atomic_write(made / name, _inference_only(run.checkpoint))
        write_json(made / Run.ENSEMBLE, record)
        runs = list(sources.values())
        if None not in (splits := [run.split for run in runs]) and all(s == splits[0] for s in splits):
            shutil.copyfile(runs[0] / Run.CONFIG, made / Run.CONFIG)
            write_json(made / Run.RECORD, {**runs[0].record, **_making(sources)})
        take_place(made, target)
    names = ", ".join(particle_name(code) for code in codes)
    print(
        f"{folder}: {len(codes)} members ({names}) beside the default, {'with' if photons else 'without'} a photon-sum model"
    )


def _making(sources: dict[str, Run]) -> dict[str, Any]:
    """What an ensemble's record says of how it was made, in the place of how its default model was trained."""
    return origin(torch=torch.__version__) | {
        "command": sys.argv[1:],
        "model": "Ensemble",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "members": {name: str(run.checkpoint.resolve()) for name, run in sources.items()},
        "ancestors": joined(*(lineages(run.checkpoint) for run in sources.values())),
    }


def _inference_only(path: Path) -> bytes:
    """A checkpoint's bytes without optimizers, schedulers and loops."""
    checkpoint = read_checkpoint(path)
    stream = io.BytesIO()
    torch.save({key: checkpoint[key] for key in ("calosim", "state_dict", "epoch") if key in checkpoint}, stream)
    return stream.getvalue()
