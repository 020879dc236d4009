"""From the vertex to the front face, and from the front face to photon images."""

from __future__ import annotations

import numpy as np

from calosim.detectors import Detector
from calosim.montecarlo.flight import Flight, decay, properties
from calosim.montecarlo.matter import DARK, ELECTROMAGNETIC, Station
from calosim.montecarlo.setups import Setup

__all__ = ["illuminate", "transport"]

#: How many times too many photons an artifact has; the one on record had some thousand times too many.
_ARTIFACT_FACTOR = 200


def transport(
    particles: np.ndarray,
    pdg: np.ndarray,
    detector: Detector,
    stations: tuple[Station, ...],
    rng: np.random.Generator,
) -> Flight:
    r"""Flies particles from their vertex to the front face.

    Between stations particles fly straight and decay with length :math:`\beta \gamma c \tau`; being memoryless, the
    length is drawn anew after each station.

    Args:
        particles: Features with shape (n, 9).
        pdg: PDG codes with shape (n,).
        detector: The detector; which face a particle meets is the sign of its pz.
        stations: What is met on the way, in order of z.
        rng: The random stream.

    Returns:
        All particles that cross the plane of the front face, wherever they do; ``row`` counts from 0.
    """
    side = np.sign(particles[:, 6])
    face = np.where(side > 0, detector.front_z[0], -detector.front_z[1])
    goals = np.column_stack([*(np.full(len(pdg), s.z) for s in stations), face])
    position, momentum = particles[:, 1:4].copy(), particles[:, 4:7].copy()
    position[:, 2] *= side
    momentum[:, 2] *= side
    flight = Flight(np.arange(len(pdg)), pdg.astype(np.int64), momentum, position, np.ones(len(pdg), dtype=bool))
    for goal in range(len(stations) + 1):
        flight = _fly(flight, goals[:, goal], rng)
        if goal < len(stations):
            flight = stations[goal].act(flight, rng)
    return flight


def _fly(flight: Flight, goal: np.ndarray, rng: np.random.Generator) -> Flight:
    """Flies straight to the goal of each row; daughters of those that decay before it fly on."""
    done = [flight.select(slice(0))]  # none may arrive
    while len(flight):
        flight = flight.select(flight.momentum[:, 2] > 1.0)  # GeV/c: softer ones neither arrive nor shine
        mass, _, ctau = properties(flight.pdg)
        unstable = np.isfinite(ctau)
        along = np.full(len(flight), np.inf)
        along[unstable] = (
            flight.momentum[unstable, 2] / mass[unstable] * ctau[unstable] * rng.standard_exponential(unstable.sum())
        )
        end = flight.position[:, 2] + along
        decays = end < goal[flight.row]
        done.append(flight.select(~decays).moved(goal[flight.row[~decays]]))
        flight = flight.select(decays).moved(end[decays])
        flight = decay(flight, rng) if len(flight) else flight
    return Flight.join(done)


def illuminate(
    arrived: Flight,
    n: int,
    detector: Detector,
    setup: Setup,
    rng: np.random.Generator,
    *,
    min_photons: int = 0,
    artifact: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Turns particles on the front face into images.

    Args:
        arrived: Particles on the face.
        n: Number of rows the particles belong to.
        detector: The detector.
        setup: Its setup.
        rng: The random stream.
        min_photons: Rows with fewer photons are dropped.
        artifact: Rows that get far too many photons, shape (n,); none by default.

    Returns:
        Images of the kept rows, int16, shape (K, nx, ny), and which rows were kept, shape (n,).
    """
    local = arrived.position[:, :2] - (detector.center_x, 0.0)
    em = np.isin(arrived.pdg, ELECTROMAGNETIC)
    photons = []
    for light, which in ((setup.electronic, em), (setup.hadronic, ~em & ~np.isin(arrived.pdg, DARK))):
        shower = arrived.select(which)
        counts = light.counts(shower.energy, properties(shower.pdg).charge == 0, rng)
        if artifact is not None:
            counts[artifact[shower.row]] *= _ARTIFACT_FACTOR
        owner, position = light.photon_positions(local[which], counts, rng)
        photons.append(_pixels(shower.row[owner], position, detector))
    row, pixel = (np.concatenate(part) for part in zip(*photons, strict=True))
    kept = np.bincount(row, minlength=n) >= min_photons
    # Most attempts leave nothing: images are made for the kept ones only.
    among = kept[row]
    flat = (np.cumsum(kept) - 1)[row[among]] * detector.pixels + pixel[among]
    images = np.bincount(flat, minlength=kept.sum() * detector.pixels).reshape(-1, *detector.shape)
    # Only an artifact comes near the limit of int16, which halves the memory of everything downstream.
    return images.clip(max=np.iinfo(np.int16).max).astype(np.int16), kept


def _pixels(row: np.ndarray, position: np.ndarray, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Row and pixel number of every photon; those that end beside the detector have leaked out."""
    size, shape = np.array(detector.size, dtype=np.float32), detector.shape
    x, y = (np.floor((position[i] + size[i] / 2) / np.float32(detector.pitch)) for i in (0, 1))
    inside = (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[1])
    return row[inside], x[inside].astype(np.int64) * shape[1] + y[inside].astype(np.int64)
