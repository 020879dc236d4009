r"""A toy Monte Carlo: primaries, transport with decays, showers, photon images. It is a model, not a simulation.

It stands in for the ALICE data, which is not public, so that everything downstream runs on ROOT input with physics in
it: straight flight, magnetic bending, relativistic decay lengths, isotropic two-body decays, showers with sub-showers.
**It leaves out**: a geometry (beam pipe and collimators are thin planes with a rectangular hole), a magnetic lattice (one
thin dipole), energy loss, shower development in depth, the angle of incidence, fibres and optics, three-body decays
(K0L flies as if stable; charged kaons decay only through their two-body channels), correlations between the particles
of one event, and everything low in energy. Its parameters were tuned so that published averages come out (see
:mod:`calosim.montecarlo.calibration`); nothing beyond those averages is to be believed.

Adding a detector is adding a :class:`Setup` to :data:`SETUPS`: where primaries come from, what stands in their way and
how the calorimeter answers.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
    | Review of Particle Physics (Particle Data Group, 2024), https://doi.org/10.1103/PhysRevD.110.030001
    | Lateral profile, containment and resolution of the ZN: coppedis/fastsimZDC
    | Photon sums of single tracks: Jot-De/ZDC_fastsim
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil

import numpy as np

from calosim.detectors import Detector, get_detector
from calosim.montecarlo.flight import Flight, decay, properties
from calosim.montecarlo.matter import DARK, ELECTROMAGNETIC, Station
from calosim.montecarlo.setups import Setup, get_setup
from calosim.showers.record import Showers

__all__ = ["MIN_PHOTONS", "Truth", "draw_primaries", "illuminate", "simulate", "simulate_with_truth"]

#: Responses with fewer photons are not kept (P4).
MIN_PHOTONS = 10


#: Attempts that share one random stream. Part of the meaning of a seed: changing it changes every dataset.
_CHUNK = 2048


_PRIMARY_STREAM, _RESPONSE_STREAM = 0, 1


#: How many times too many photons an artifact has; the one on record had some thousand times too many.
_ARTIFACT_FACTOR = 200


@dataclass(frozen=True)
class Truth:
    """What a detector cannot tell.

    Attributes:
        primary: Which primary a response belongs to, shape (N,).
        direct: Whether the primary itself reached the front face, shape (N,).
        artifact: Whether the response is one of the rare artifacts, shape (N,).
    """

    primary: np.ndarray
    direct: np.ndarray
    artifact: np.ndarray


def draw_primaries(n: int, detector: str | Detector, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws primaries from the mix and the spectra of a detector's setup.

    Types are drawn by systematic sampling, so that even a small sample has the right mix.

    Args:
        n: How many.
        detector: A detector or its name.
        seed: The seed; independent of the responses' stream of the same seed.

    Returns:
        Features (n, 9), float64, in the order and units of :data:`calosim.showers.record.FEATURES`, and PDG codes (n,), int32.

    Raises:
        ValueError: If there is no such detector or n is not positive.
    """
    setup = get_setup(get_detector(detector))
    if n < 1:
        raise ValueError(f"expected a positive number of primaries, got {n}")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PRIMARY_STREAM,)))
    weights = np.array([s.weight for s in setup.primaries.sources.values()])
    edges = np.cumsum(weights / weights.sum())[:-1]
    types = np.searchsorted(edges, (np.arange(n) + rng.random()) / n, side="right")
    pdg = rng.permutation(np.array(list(setup.primaries.sources))[types])
    momentum = setup.primaries.momenta(pdg, rng)
    vertex = np.stack([rng.normal(mean, width, n) for mean, width in setup.primaries.vertex], 1)
    mass, charge, _ = properties(pdg)
    energy = np.sqrt((momentum**2).sum(1) + mass**2)
    features = [energy[:, None], vertex, momentum, 1000 * mass[:, None], charge[:, None]]
    return np.concatenate(features, 1), pdg.astype(np.int32)


def simulate(
    primaries: int | Showers | tuple[np.ndarray, np.ndarray],
    responses_per_primary: int,
    detector: str | Detector,
    seed: int,
    *,
    workers: int = 1,
    progress: bool = False,
) -> Showers:
    """Simulates many responses to each of some primaries and keeps those with at least 10 photons.

    Every primary is tried equally often, as in the ALICE data, and ``responses_per_primary`` is the number of *kept*
    responses averaged over primaries of the built-in mix: the attempts are that number over the setup's mean
    acceptance. So, as in the data, a primary on course leaves several times the average, a kaon that nearly always
    decays to charged pions a few, and one that never leaves 10 photons does not appear at all. The built-in mix is
    one of primaries; its weights are such that the *kept responses* have the published mix.

    Args:
        primaries: How many to draw from the built-in mix, or the primaries themselves: features (n, 9) and PDG codes
            (n,), or Showers, of which each distinct primary is taken once.
        responses_per_primary: Mean number of kept responses per primary of the built-in mix.
        detector: A detector or its name.
        seed: One seed gives one dataset, bit for bit, whatever the number of workers.
        workers: Threads.
        progress: Whether to show a progress bar.

    Returns:
        The kept responses, those of one primary next to each other; images are int16.

    Raises:
        ValueError: If the detector is unknown or has no setup, a number is not positive, or given primaries have the
            wrong shape or an unknown PDG code.
    """
    return simulate_with_truth(primaries, responses_per_primary, detector, seed, workers=workers, progress=progress)[0]


def simulate_with_truth(
    primaries: int | Showers | tuple[np.ndarray, np.ndarray],
    responses_per_primary: int,
    detector: str | Detector,
    seed: int,
    *,
    workers: int = 1,
    progress: bool = False,
    min_photons: int = MIN_PHOTONS,
) -> tuple[Showers, Truth]:
    """Does what :func:`simulate` does and tells how each response came about.

    Args:
        primaries: See :func:`simulate`.
        responses_per_primary: See :func:`simulate`.
        detector: See :func:`simulate`.
        seed: See :func:`simulate`.
        workers: See :func:`simulate`.
        progress: See :func:`simulate`.
        min_photons: Responses with fewer are dropped; 0 keeps every attempt.

    Returns:
        The kept responses and their truth.
    """
    geometry = get_detector(detector)
    setup = get_setup(geometry)
    if responses_per_primary < 1 or workers < 1:
        raise ValueError(
            "expected a positive number of responses per primary and of workers, "
            f"got {responses_per_primary} and {workers}"
        )
    if isinstance(primaries, Showers | tuple):
        particles, pdg = _given(primaries)
    else:
        particles, pdg = draw_primaries(int(primaries), geometry, seed)
    properties(pdg)  # an unknown code is an error here, not in a thread
    attempts = max(1, round(responses_per_primary / setup.acceptance))
    total = len(pdg) * attempts

    def chunk(index: int) -> tuple[np.ndarray, Truth]:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_RESPONSE_STREAM, index)))
        rows = np.arange(index * _CHUNK, min((index + 1) * _CHUNK, total)) // attempts
        return _respond(particles[rows], pdg[rows], rows, geometry, setup, min_photons, rng)

    from tqdm import tqdm

    chunks = range(ceil(total / _CHUNK))
    parts = []
    bar = tqdm(total=total, unit="showers", unit_scale=True, disable=None if progress else True)
    with bar, ThreadPoolExecutor(workers) as pool:  # numpy releases the interpreter lock where the time goes
        for index, part in enumerate(pool.map(chunk, chunks)):
            parts.append(part)
            bar.update(min(_CHUNK, total - index * _CHUNK))
    images = np.concatenate([p[0] for p in parts])
    truth = Truth(*(np.concatenate([getattr(p[1], n) for p in parts]) for n in Truth.__dataclass_fields__))
    return Showers(particles[truth.primary], pdg[truth.primary], images, geometry.name), truth


def _given(primaries: Showers | tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Checks primaries given by the user; of Showers, keeps each distinct one once, in order of first appearance."""
    if isinstance(primaries, Showers):
        table = np.column_stack([primaries.particles, primaries.pdg])
        first = np.sort(np.unique(table, axis=0, return_index=True)[1])
        return primaries.particles[first], primaries.pdg[first]
    particles, pdg = np.asarray(primaries[0], dtype=np.float64), np.asarray(primaries[1], dtype=np.int32)
    if particles.ndim != 2 or particles.shape[1] != 9 or pdg.shape != particles.shape[:1] or not len(pdg):
        raise ValueError(
            f"expected primaries with features (n, 9) and PDG codes (n,), got {particles.shape} and {pdg.shape}"
        )
    return particles, pdg


def _respond(
    particles: np.ndarray,
    pdg: np.ndarray,
    primary: np.ndarray,
    detector: Detector,
    setup: Setup,
    min_photons: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, Truth]:
    """One attempt per row, from the vertex to the image."""
    n = len(pdg)
    arrived = transport(particles, pdg, detector, setup.stations, rng)
    on_face = np.all(np.abs(arrived.position[:, :2] - (detector.center_x, 0.0)) < np.array(detector.size) / 2, axis=1)
    arrived = arrived.select(on_face)
    artifact = rng.random(n) < setup.artifacts
    images, kept = illuminate(arrived, n, detector, setup, rng, min_photons=min_photons, artifact=artifact)
    direct = np.zeros(n, dtype=bool)
    direct[arrived.row[arrived.primary]] = True
    return images, Truth(primary[kept], direct[kept], artifact[kept])


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
    done = []
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
