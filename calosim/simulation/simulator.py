"""The fast simulation: photon sum, shape and noise removal from trained models, for a primary or for ten million."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from calosim.data.record import check_primaries, row_name
from calosim.io import read_json
from calosim.models.acceptance import Acceptance
from calosim.models.base import CalosimModule, evaluating
from calosim.models.checkpoints import digest
from calosim.models.photon_sum import PhotonSum
from calosim.models.provenance import not_seen
from calosim.models.shower import ShowerModel
from calosim.particles import particle_name
from calosim.runs import Run
from calosim.simulation.parallel import Processes, devices_of, run_side_by_side, workers_on

__all__ = ["FastSimulator", "pick_device", "read_ensemble"]

#: Of fewer rows a call costs more than what they have to do.
_LEAST_ROWS = 32


class FastSimulator:
    """Two stages: a photon sum from its networks, then a shape from the flow, made integer; before them, if there is a model of
    it, whether there is a response at all.

    With members it is the published ensemble: the model fine-tuned for the particle where there is one, else the
    baseline.

    Args:
        shower: The shower model, of all particles that have none of their own.
        photons: The photon-sum model; without it, photon sums must be given to :meth:`sample`.
        requantization: A key of the representation's :attr:`~calosim.representations.Representation.requantizations`,
            or one for each of some PDG codes, with the key 0 for all others (the representation's own, if not given).
        members: Shower models of some PDG codes.
        acceptance: The acceptance model; without it every primary leaves a response.

    Raises:
        ValueError: If the models are of different detectors, or a noise removal is unknown.

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
        others: dict[str, CalosimModule] = {f"member {particle_name(c)}": m for c, m in self.members.items()}
        if photons is not None:
            others["photon-sum model"] = photons
        if acceptance is not None:
            others["acceptance model"] = acceptance
        for name, other in others.items():
            if other.detector != shower.detector:
                raise ValueError(
                    f"expected models of one detector, got a shower model of {shower.detector.title} and a {name} of "
                    f"{other.detector.title}"
                )
        asked = requantization if isinstance(requantization, Mapping) else {0: requantization}
        chosen = {code: method for code, method in asked.items() if method is not None}
        for method in chosen.values():
            shower.representation.check_requantization(method)
        own = shower.representation.requantization
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
            noise_removal: See :class:`FastSimulator`; a mapping without the key 0 leaves the ensemble's choice to the
                particles that it does not name, None to all.
            device: Where to simulate.
            acceptance: Run folder or checkpoint of the acceptance model.
            devices: Processes that share the rows of a sample, on a GPU of that machine each, or each with its share of a CPU's
                threads.

        Raises:
            ValueError: If a folder holds no such model, or there are fewer devices.
        """
        names = devices_of(torch.device(device), devices)
        folder = Path(run_folder)
        record = read_ensemble(folder) if Run(folder).is_ensemble else None
        if not isinstance(requantization, int) and (requantization is None or 0 not in requantization):
            stored = record["requantization"] if record else {}
            requantization = {**{int(code): method for code, method in stored.items()}, **(requantization or {})}
        if record and photons is None and record["photons"]:
            photons = folder / record["photons"]
        members = record["members"] if record else {}
        simulator = cls(
            ShowerModel.load(folder / record["default"] if record else folder, device),
            None if photons is None else PhotonSum.load(photons, device),
            requantization,
            {int(code): ShowerModel.load(folder / name, device) for code, name in members.items()},
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
            pdg: PDG codes with shape (N,); they choose noise removal and member.
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
            photon_sum = _whole("photon_sum", photon_sum, pdg.shape, least=0)
        if self._processes and len(pdg):
            return self._processes.sample(particles, pdg, seed, rows, photon_sum, batch_size)
        images = np.empty((len(pdg), *self.detector.shape), dtype=np.int32)
        default = self.requantization.get(0, 0)
        method = np.array([self.requantization.get(int(code), default) for code in pdg], dtype=np.int64)
        rest = ~np.isin(pdg, list(self.members))
        groups = [(self.shower, rest), *((member, pdg == code) for code, member in self.members.items())]
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
        for model, mine in groups:
            own = np.flatnonzero(mine)
            # No larger than what leaves something to do for all, and large enough to be worth a call.
            size = min(batch_size, max(_LEAST_ROWS, -(-len(own) // workers_on(self.device))))
            jobs += [partial(simulate, model, own[start : start + size]) for start in range(0, len(own), size)]
        with ExitStack() as modes:  # set once, not by every thread
            for part in (self.shower, *self.members.values(), self.photons, self.acceptance):
                if part is not None:
                    modes.enter_context(evaluating(part))
            run_side_by_side(jobs, self.device)
        return images

    def sums(self, features: Tensor, seed: int, rows: Tensor) -> Tensor:
        """Photon sums (B,) of both models before the shape, 0 where the acceptance model draws no response."""
        assert self.photons is not None
        total = self.photons.sample(features, seed, rows)
        return total if self.acceptance is None else torch.where(self.acceptance.sample(features, seed, rows), total, 0)

    def fingerprint(self) -> str:
        """A hash of all that makes a response: weights and settings of the models, and the noise removal."""
        found = hashlib.blake2b(json.dumps(sorted(self.requantization.items())).encode(), digest_size=16)
        parts: dict[Any, CalosimModule | None] = {
            "shape": self.shower,
            "photons": self.photons,
            "acceptance": self.acceptance,
        }
        for name, part in {**parts, **self.members}.items():
            if part is not None:
                settings = json.dumps(part.init, sort_keys=True, default=str)
                found.update(f"{name} {digest(part.state_dict(), f'{type(part).__name__} {settings}')}".encode())
        return found.hexdigest()

    def outside(self, particles: np.ndarray, pdg: np.ndarray) -> dict[str, int]:
        """Counts primaries outside of what the models that answer them were trained on.

        Args:
            particles: Features with shape (N, 9).
            pdg: PDG codes with shape (N,).

        Returns:
            How many there are, by model and reason; see :func:`calosim.models.provenance.not_seen`.
        """
        counts: dict[str, int] = {}
        models: list[tuple[str, CalosimModule, np.ndarray]] = [
            ("shape", self.shower, ~np.isin(pdg, list(self.members)))
        ]
        models += [(f"member {particle_name(code)}", member, pdg == code) for code, member in self.members.items()]
        if self.photons is not None:
            models.append(("photon sum", self.photons, np.ones(len(pdg), dtype=bool)))
        if self.acceptance is not None:
            models.append(("acceptance", self.acceptance, np.ones(len(pdg), dtype=bool)))
        for name, model, mine in models:
            for reason, rows in not_seen(model.seen, particles[mine], pdg[mine]).items():
                counts[f"{name}: {reason}"] = int(rows.sum())
        return counts


def _whole(name: str, values: ArrayLike, shape: tuple[int, ...], least: int | None = None) -> np.ndarray:
    """An argument as int64 with the expected shape.

    Raises:
        ValueError: If it has another shape, or holds something else than whole numbers, or smaller ones than ``least``.
    """
    array = np.asarray(values)
    if array.shape != shape:
        raise ValueError(f"expected {name} with shape {shape}, got {array.shape}")
    whole = array.dtype.kind in "iuf" and (array == np.rint(array)).all()
    if not whole or (least is not None and (array < least).any()):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"expected whole numbers{bound} in {name}, got {array.ravel()[:5].tolist()}")
    return array.astype(np.int64)


def read_ensemble(folder: Path) -> dict[str, Any]:
    """The record of an ensemble.

    Raises:
        ValueError: If it is damaged.
    """
    path = Run(folder) / Run.ENSEMBLE
    record = read_json(path)
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
