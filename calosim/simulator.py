"""The fast simulation: photon sum, shape and noise removal from trained models, for a primary or for ten million."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from tqdm import tqdm

from calosim import rootio
from calosim.base import ShapeModule
from calosim.particles import particle_code
from calosim.photons import PhotonSum
from calosim.preprocessing import NOISE_REMOVALS
from calosim.rootio import Showers

__all__ = ["FastSimulator", "generate"]


class FastSimulator:
    """Two stages: a photon sum from the Bayesian network, then a shape from the flow, scaled and made integer.

    Args:
        shape: The shape model.
        photons: The photon-sum model; without it, photon sums must be given to :meth:`sample`.
        noise_removal: A key of :data:`~calosim.preprocessing.NOISE_REMOVALS`, or one for each of some PDG codes, with
            the key 0 for all others (3, the published best overall, if not given).

    Raises:
        ValueError: If the models are of different detectors, or a noise removal is unknown.
    """

    def __init__(
        self, shape: ShapeModule, photons: PhotonSum | None = None, noise_removal: int | Mapping[int, int] = 3
    ):
        if photons is not None and photons.detector != shape.detector:
            raise ValueError(
                f"expected two models of one detector, got a shape model of {shape.detector.title} and a photon-sum "
                f"model of {photons.detector.title}"
            )
        self.shape, self.photons, self.detector = shape, photons, shape.detector
        methods = {0: 3, **noise_removal} if isinstance(noise_removal, Mapping) else {0: noise_removal}
        for method in methods.values():
            if method not in NOISE_REMOVALS:
                raise ValueError(f"unknown noise removal {method!r}; expected 1, 2, 3 or 4")
        self.noise_removal = methods

    @classmethod
    def load(
        cls,
        run_folder: str | Path,
        photons: str | Path | None = None,
        noise_removal: int | Mapping[int, int] = 3,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Loads trained models.

        Args:
            run_folder: Run folder or checkpoint of the shape model.
            photons: Run folder or checkpoint of the photon-sum model.
            noise_removal: See :class:`FastSimulator`.
            device: Where to simulate.

        Raises:
            ValueError: If a folder holds no such model.
        """
        return cls(
            ShapeModule.load(run_folder, device),
            None if photons is None else PhotonSum.load(photons, device),
            noise_removal,
        )

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.shape.device

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

        Args:
            particles: Features with shape (N, 9), see :data:`calosim.rootio.FEATURES`.
            pdg: PDG codes with shape (N,).
            seed: Seed of the draws.
            rows: Row numbers with shape (N,) that key the draws together with the seed; 0 to N - 1 if not given.
            photon_sum: Photon sums with shape (N,); drawn from the photon-sum model if not given.
            batch_size: Rows simulated at once; a matter of memory and speed, not of the result.

        Returns:
            Photon counts with shape (N, nx, ny), int32.

        Raises:
            ValueError: If there is neither a photon-sum model nor photon sums.
        """
        if photon_sum is None and self.photons is None:
            raise ValueError("expected a photon-sum model or given photon sums; name its run folder with --photons")
        rows = np.arange(len(pdg)) if rows is None else rows
        images = np.empty((len(pdg), *self.detector.shape), dtype=np.int32)
        method = np.array([self.noise_removal.get(int(code), self.noise_removal[0]) for code in pdg], dtype=np.int64)
        for start in range(0, len(pdg), batch_size):
            batch = slice(start, start + batch_size)
            features = torch.from_numpy(particles[batch]).to(self.device, torch.float32)
            keys = torch.from_numpy(rows[batch]).to(self.device)
            if photon_sum is None:
                assert self.photons is not None
                total = self.photons.sample(features, seed, keys)
            else:
                total = torch.from_numpy(photon_sum[batch]).to(self.device)
            removal = torch.from_numpy(method[batch]).to(self.device)
            images[batch] = self.shape.generate(features, total, seed, keys, removal).cpu().numpy()
        return images

    def stream(
        self, particles: np.ndarray, pdg: np.ndarray, responses: int, seed: int, batch_size: int = 256
    ) -> Iterator[Showers]:
        """Simulates several responses to each primary, a batch at a time.

        Args:
            particles: Features with shape (N, 9).
            pdg: PDG codes with shape (N,).
            responses: Responses to each primary; they follow each other.
            seed: Seed of the draws.
            batch_size: Rows of a batch.

        Yields:
            Showers with up to ``batch_size`` rows; together ``N * responses``.
        """
        for start in range(0, len(pdg) * responses, batch_size):
            rows = np.arange(start, min(start + batch_size, len(pdg) * responses))
            primary = rows // responses
            images = self.sample(particles[primary], pdg[primary], seed, rows, batch_size=batch_size)
            yield Showers(particles[primary], pdg[primary], images, self.detector.name)


def generate(
    shape: str,
    photons: str,
    primaries: str,
    out: str,
    responses: int = 1,
    seed: int = 1,
    noise_removal: int = 3,
    noise_removal_of: Sequence[str] = (),
    batch_size: int = 256,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Simulates responses to primaries with trained models and writes them to a ROOT file.

    Args:
        shape: Run folder or checkpoint of the shape model (teacher or student).
        photons: Run folder or checkpoint of the photon-sum model.
        primaries: ROOT file, or CSV with a header of the nine features and pdg.
        out: The ROOT file to write.
        responses: Responses to each primary.
        seed: Seed; a response depends on the seed and its row alone.
        noise_removal: 1 floor, 2 subtract and round, 3 floor and renormalize, 4 subtract, round and renormalize.
        noise_removal_of: Exceptions by particle, for instance "[neutron=1,k0s=2]".
        batch_size: Responses simulated at once.
        device: auto, cpu, cuda or mps.
        quiet: Show no progress.
    """
    if responses < 1:
        raise ValueError(f"expected at least one response to each primary, got {responses}")
    simulator = FastSimulator.load(shape, photons, noise_removals(noise_removal, noise_removal_of), pick_device(device))
    particles, pdg = rootio.read_primaries(primaries)
    progress = tqdm(total=len(pdg) * responses, unit="responses", unit_scale=True, disable=True if quiet else None)
    with progress, rootio.Writer(out, simulator.detector.name) as writer:
        for showers in simulator.stream(particles, pdg, responses, seed, batch_size):
            writer.extend(showers)
            progress.update(len(showers))
    print(f"{out}: {len(pdg) * responses} responses of {simulator.detector.title} to {len(pdg)} primaries")


def noise_removals(default: int, exceptions: Sequence[str]) -> dict[int, int]:
    """The noise removal of each particle, from a default and texts such as ``k0s=2``.

    Raises:
        ValueError: If a text is not of that form.
    """
    methods = {0: default}
    for text in exceptions:
        name, _, method = text.rpartition("=")
        if not name or not method.isdigit():
            raise ValueError(f"expected a noise removal as particle=1, 2, 3 or 4, got {text!r}")
        methods[particle_code(name)] = int(method)
    return methods


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
