r"""A toy Monte Carlo: primaries, transport with decays, showers, photon images. It is a model, not a simulation.

It stands in for the ALICE data, which is not public, so that everything downstream runs on ROOT input with physics in
it: straight flight, magnetic bending, relativistic decay lengths, isotropic two-body decays, showers with sub-showers.
**It leaves out**: a geometry (beam pipe and collimators are thin planes with a rectangular hole), a magnetic lattice (one
thin dipole), energy loss, shower development in depth, the angle of incidence, fibres and optics, three-body decays
(K0L flies as if stable; charged kaons decay only through their two-body channels), correlations between the particles
of one event, and everything low in energy. Its parameters were tuned so that published averages come out (see
:mod:`calosim.calibration`); nothing beyond those averages is to be believed.

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
from functools import lru_cache
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np

from calosim.detectors import Detector, get_detector
from calosim.rootio import Showers

__all__ = [
    "MIN_PHOTONS",
    "SETUPS",
    "Flight",
    "Setup",
    "Truth",
    "decay",
    "draw_primaries",
    "illuminate",
    "simulate",
    "simulate_with_truth",
    "transport",
    "two_body",
]

#: Responses with fewer photons are not kept (P4).
MIN_PHOTONS = 10

#: Attempts that share one random stream. Part of the meaning of a seed: changing it changes every dataset.
_CHUNK = 2048
_PRIMARY_STREAM, _RESPONSE_STREAM = 0, 1

#: How many times too many photons an artifact has; the one on record had some thousand times too many.
_ARTIFACT_FACTOR = 200

#: Two-body decays: branching fraction and daughters (PDG 2024); normalized to the channels listed here.
_DECAYS: dict[int, tuple[tuple[float, int, int], ...]] = {
    111: ((0.98823, 22, 22),),
    211: ((0.99988, -13, 14),),
    310: ((0.6920, 211, -211), (0.3069, 111, 111)),
    321: ((0.6356, -13, 14), (0.2067, 211, 111)),
    3122: ((0.641, 2212, -211), (0.359, 2112, 111)),
    3222: ((0.5147, 2212, 111), (0.4843, 2112, 211)),
    3112: ((0.99848, 2112, -211),),
    3322: ((0.99524, 3122, 111),),
    3312: ((0.99887, 3122, -211),),
}
_OWN_ANTIPARTICLES = frozenset({22, 111, 130, 310})
_ELECTROMAGNETIC = (22, 11, -11)
_DARK = (12, -12, 13, -13, 14, -14, 16, -16)  # neutrinos, and muons, which leave next to no light


@dataclass(frozen=True)
class Flight:
    """Particles on their way, one entry each, in a frame where every row flies towards positive z.

    Attributes:
        row: The response a particle belongs to, shape (M,).
        pdg: PDG codes, shape (M,).
        momentum: px, py, pz in GeV/c, shape (M, 3).
        position: x, y, z in cm, shape (M, 3).
        primary: Whether it is the primary itself, shape (M,).
    """

    row: np.ndarray
    pdg: np.ndarray
    momentum: np.ndarray
    position: np.ndarray
    primary: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @property
    def energy(self) -> np.ndarray:
        """Total energies in GeV, shape (M,)."""
        return np.sqrt((self.momentum**2).sum(1) + _properties(self.pdg).mass ** 2)

    def select(self, which: np.ndarray) -> Flight:
        """Returns some of the particles, by mask or index."""
        return Flight(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def moved(self, z: np.ndarray | float) -> Flight:
        """Returns the particles after a straight flight to z."""
        step = (z - self.position[:, 2]) / self.momentum[:, 2]
        return Flight(self.row, self.pdg, self.momentum, self.position + step[:, None] * self.momentum, self.primary)

    @staticmethod
    def join(parts: list[Flight]) -> Flight:
        """Returns all particles of several flights."""
        return Flight(*(np.concatenate([getattr(p, n) for p in parts]) for n in Flight.__dataclass_fields__))


class _Properties(NamedTuple):
    mass: np.ndarray  # GeV
    charge: np.ndarray  # e
    ctau: np.ndarray  # cm; infinite where there is no two-body channel to decay by


@lru_cache(maxsize=256)
def _property(pdg: int) -> tuple[float, float, float]:
    from particle import InvalidParticle, Particle, ParticleNotFound  # slow to import: only when something is simulated

    try:
        found = Particle.from_pdgid(pdg)
    except (ParticleNotFound, InvalidParticle):
        raise ValueError(f"cannot simulate PDG code {pdg}: it is not in the PDG tables") from None
    ctau = (found.ctau or 0.0) / 10.0 if _channels(pdg) else np.inf
    return (found.mass or 0.0) / 1000.0, float(found.charge or 0.0), ctau


def _properties(pdg: np.ndarray) -> _Properties:
    codes, inverse = np.unique(pdg, return_inverse=True)
    table = np.array([_property(int(code)) for code in codes]).reshape(-1, 3)[inverse]
    return _Properties(*table.T)


def _channels(pdg: int) -> tuple[tuple[float, int, int], ...]:
    """The decays of a particle or, charge-conjugated, of an antiparticle."""
    if pdg > 0:
        return _DECAYS.get(pdg, ())

    def conjugate(code: int) -> int:
        return code if code in _OWN_ANTIPARTICLES else -code

    return tuple((fraction, conjugate(a), conjugate(b)) for fraction, a, b in _DECAYS.get(-pdg, ()))


def two_body(
    momentum: np.ndarray, mass: np.ndarray, first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    r"""Decays particles into two, isotropically in their rest frame, and boosts the daughters.

    .. math:: p^* = \frac{\sqrt{(M^2 - (m_1 + m_2)^2) (M^2 - (m_1 - m_2)^2)}}{2 M}

    Args:
        momentum: Parent momenta in GeV/c, shape (M, 3).
        mass: Parent masses in GeV, shape (M,).
        first: Masses of the first daughter in GeV, shape (M,).
        second: Masses of the second daughter in GeV, shape (M,).
        rng: The random stream.

    Returns:
        The daughters' momenta in GeV/c, twice (M, 3).
    """
    product = (mass**2 - (first + second) ** 2) * (mass**2 - (first - second) ** 2)
    size = np.sqrt(product.clip(min=0)) / (2 * mass)
    rest = _directions(len(mass), rng) * size[:, None]
    energy = np.sqrt((momentum**2).sum(1) + mass**2)
    along = (momentum * rest).sum(1) / (mass * (energy + mass))

    def boost(star: np.ndarray, sign: float, m: np.ndarray) -> np.ndarray:
        return star + momentum * (sign * along + np.sqrt(size**2 + m**2) / mass)[:, None]

    return boost(rest, 1.0, first), boost(-rest, -1.0, second)


def _directions(n: int, rng: np.random.Generator) -> np.ndarray:
    cosine, phi = rng.uniform(-1, 1, n), rng.uniform(0, 2 * np.pi, n)
    sine = np.sqrt(1 - cosine**2)
    return np.stack([sine * np.cos(phi), sine * np.sin(phi), cosine], 1)


def decay(flight: Flight, rng: np.random.Generator) -> Flight:
    """Decays every particle where it is.

    Args:
        flight: Particles that have a channel to decay by.
        rng: The random stream.

    Returns:
        Their daughters, 2 M particles.
    """
    daughters = np.empty((len(flight), 2), dtype=np.int64)
    draw = rng.random(len(flight))
    for code in np.unique(flight.pdg):
        which = flight.pdg == code
        channels = _channels(int(code))
        fractions = np.cumsum([c[0] for c in channels])
        chosen = np.searchsorted(fractions / fractions[-1], draw[which], side="right")
        daughters[which] = np.array([c[1:] for c in channels])[chosen]
    first, second = (_properties(daughters[:, i]).mass for i in (0, 1))
    momenta = two_body(flight.momentum, _properties(flight.pdg).mass, first, second, rng)
    secondary = np.zeros(len(flight), dtype=bool)
    return Flight.join([Flight(flight.row, daughters[:, i], momenta[i], flight.position, secondary) for i in (0, 1)])


class Station(Protocol):
    """Something at a fixed distance that particles meet on their way."""

    @property
    def z(self) -> float:
        """The distance in cm."""
        ...

    def act(self, flight: Flight, rng: np.random.Generator) -> Flight:
        """What comes out on the far side, given particles at ``z``."""
        ...


@dataclass(frozen=True)
class Dipole:
    r"""A thin dipole: charged particles are turned by :math:`\Delta p_x = q k` at constant momentum.

    Attributes:
        z: Its distance in cm; the ALICE separation dipole D1 spans 58 to 68 m.
        kick: Transverse momentum per unit charge in GeV/c. The default brings the 2.51 TeV spectator protons of a
            lead run to the centre of ZP, 24.35 cm off the axis, and thereby all charged particles out of ZN.
    """

    z: float = 6300.0
    kick: float = 24.35 / (11251.8 - 6300.0) * 2510.0

    def act(self, flight: Flight, rng: np.random.Generator) -> Flight:
        """Turns the charged ones; those too slow to pass are lost."""
        px = flight.momentum[:, 0] + self.kick * _properties(flight.pdg).charge
        squared = (flight.momentum**2).sum(1) - px**2 - flight.momentum[:, 1] ** 2
        momentum = np.stack([px, flight.momentum[:, 1], np.sqrt(squared.clip(min=0))], 1)
        passed = squared > 0
        return Flight(flight.row, flight.pdg, momentum, flight.position, flight.primary).select(passed)


@dataclass(frozen=True)
class Cascade:
    """What an interaction in thin material leaves.

    Attributes:
        daughters: PDG codes of the secondaries and their probabilities.
        lost: Probability that nothing at all goes on.
        visible: Parameters of the beta distribution of the secondaries' share of the energy.
        temperature: Slope of their transverse momentum in GeV/c; the mean is twice that.
        count: Secondaries followed.
        clumping: Shape of the gamma distribution of their shares; small values make one of them lead.
    """

    daughters: tuple[tuple[int, float], ...]
    lost: float
    visible: tuple[float, float]
    temperature: float
    count: int = 6
    clumping: float = 0.4

    def start(self, parents: Flight, rng: np.random.Generator) -> Flight:
        """The secondaries of these parents, at the parents' positions."""
        parents = parents.select(rng.random(len(parents)) >= self.lost)
        shape = (len(parents), self.count)
        shares = rng.standard_gamma(self.clumping, shape) + 1e-12
        shares *= (rng.beta(*self.visible, len(parents)) / shares.sum(1))[:, None]
        size = shares * np.linalg.norm(parents.momentum, axis=1)[:, None]
        transverse = np.minimum(rng.gamma(2.0, self.temperature, shape), 0.5 * size)
        phi = rng.uniform(0, 2 * np.pi, shape)
        slope = parents.momentum[:, :2] / parents.momentum[:, 2:]  # small angles: add slopes
        along = np.sqrt(size**2 - transverse**2)
        px = along * slope[:, :1] + transverse * np.cos(phi)
        py = along * slope[:, 1:] + transverse * np.sin(phi)
        codes, chances = zip(*self.daughters, strict=True)
        pdg = np.array(codes)[np.searchsorted(np.cumsum(chances)[:-1], rng.random(shape).ravel(), side="right")]
        momentum = np.stack([px, py, along], 2).reshape(-1, 3)
        parent = np.repeat(np.arange(len(parents)), self.count)
        secondary = np.zeros(len(parent), dtype=bool)
        return Flight(parents.row[parent], pdg, momentum, parents.position[parent], secondary)


@dataclass(frozen=True)
class Material:
    """A plane of beam pipe and collimator with a rectangular hole; what meets it leaves a few secondaries.

    Attributes:
        z: Its distance in cm.
        aperture: Half the width and height of the hole in cm.
        inside: Probability to interact (windows, rest gas, flanges) within the hole.
        outside: Probability to interact beyond it.
        hadronic: What an interacting hadron leaves.
        electronic: What an interacting photon or electron leaves.
    """

    z: float
    aperture: tuple[float, float]
    inside: float
    outside: float
    hadronic: Cascade
    electronic: Cascade

    def act(self, flight: Flight, rng: np.random.Generator) -> Flight:
        """Lets through what does not interact and replaces the rest by secondaries."""
        within = (np.abs(flight.position[:, :2]) < self.aperture).all(1)
        chance = np.where(within, self.inside, self.outside) * ~np.isin(flight.pdg, _DARK)
        hit = rng.random(len(flight)) < chance
        light = np.isin(flight.pdg, _ELECTROMAGNETIC)
        return Flight.join(
            [
                flight.select(~hit),
                self.hadronic.start(flight.select(hit & ~light), rng),
                self.electronic.start(flight.select(hit & light), rng),
            ]
        )


@dataclass(frozen=True)
class Light:
    r"""How a calorimeter answers one kind of shower.

    The photon sum is :math:`N \sim \text{Poisson}(y E (1 - E^{-k}) s)`, where s has mean 1 and the resolution's width;
    the photons fall around a few sub-showers and, of hadrons, into a wide halo. What falls beside the detector is lost.

    Attributes:
        photons: Photons per GeV of a shower of high energy, before any leaves the sides.
        loss: The light yield is lower by a factor :math:`1 - E^{-k}` (E in GeV); this is k.
        stochastic: Resolution :math:`a` in :math:`\sigma / E = \sqrt{a^2 / E + b^2}`, beyond photon counting.
        constant: The :math:`b` of it.
        core: Half width at half maximum of the lateral profile of one sub-shower in cm, in each projection.
        spread: The same for the centres of sub-showers around the axis. Both are Cauchy distributions by default,
            whose widths add: then the mean profile of the shower is a Cauchy of width ``core + spread``.
        subshowers: Sub-showers at most.
        clumping: Shape of the gamma distribution of their weights; small values make few of them lead.
        halo: Mean share of the photons far from the core (neutrons and slow fragments).
        halo_width: Half width at half maximum of the halo in cm.
        tail: How steeply profiles fall, 0.5 for the Cauchy; the published containment asks for more in narrow showers.
        missed: Probability that a neutral particle on the face leaves no light at all; charged ones always shine.
        partial: Probability that it leaves a uniform share of its light only (late showers).
    """

    photons: float
    loss: float
    stochastic: float
    constant: float
    core: float
    spread: float = 0.0
    subshowers: int = 1
    clumping: float = 1.0
    halo: float = 0.0
    halo_width: float = 1.0
    tail: float = 0.5
    missed: float = 0.0
    partial: float = 0.0

    def expected(self, energy: np.ndarray) -> np.ndarray:
        """Mean photons of showers in an infinitely wide calorimeter, shape (M,), for energies in GeV."""
        return self.photons * energy * (1 - energy.clip(min=1.0) ** -self.loss)

    def counts(self, energy: np.ndarray, neutral: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Photons of showers in an infinitely wide calorimeter, shape (M,)."""
        variance = self.stochastic**2 / energy + self.constant**2
        # Gamma distributed: positive, and for the widths in use close to the normal distribution.
        smear = rng.standard_gamma(1 / variance.clip(min=1e-9)) * variance
        fate, share = rng.random(len(energy)), rng.random(len(energy))
        smear *= np.where((fate < self.missed) & neutral, 0.0, np.where(fate < self.missed + self.partial, share, 1.0))
        return rng.poisson(self.expected(energy) * smear)

    def photon_positions(
        self, xy: np.ndarray, counts: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places every photon.

        Args:
            xy: Where the showers start, cm, shape (M, 2).
            counts: Photons of every shower, shape (M,).
            rng: The random stream.

        Returns:
            The shower every photon belongs to, shape (P,), and the photons' positions in cm, float32, shape (2, P).
        """
        m, k = len(counts), self.subshowers
        share = np.empty((m, k + 1))
        share[:, :k] = rng.standard_gamma(self.clumping, (m, k)) + 1e-9
        halo = rng.beta(10 * self.halo, 10 * (1 - self.halo), m) if self.halo else np.zeros(m)
        share[:, :k] *= ((1 - halo) / share[:, :k].sum(1))[:, None]
        share[:, k] = halo
        per_source = rng.multinomial(counts, share / share.sum(1, keepdims=True)).ravel()
        center = np.repeat(xy.T[:, :, None], k + 1, axis=2)
        center[:, :, :k] += _scatter(np.full(m * k, self.spread, dtype=np.float32), self.tail, rng).reshape(2, m, k)
        width = np.tile(np.array([self.core] * k + [self.halo_width], dtype=np.float32), m)
        source = np.repeat(np.arange(m * (k + 1)), per_source)
        position = _scatter(width[source], self.tail, rng) + center.reshape(2, -1).astype(np.float32)[:, source]
        return source // (k + 1), position


def _scatter(width: np.ndarray, tail: float, rng: np.random.Generator) -> np.ndarray:
    r"""Isotropic points in the plane, float32, shape (2, P), with that half width at half maximum in each projection.

    The radial distribution inverts in closed form, :math:`P(r) = 1 - (1 + r^2 / w^2)^{-t}`; its projections go like
    :math:`(1 + x^2 / w^2)^{-t - 1/2}`, for :math:`t = 1/2` a Cauchy.
    """
    n = len(width)
    scale = np.float32(1 / np.sqrt(2 ** (1 / (tail + 0.5)) - 1))
    beyond = 1 - rng.random(n, dtype=np.float32)
    radius = scale * width * np.sqrt(beyond ** np.float32(-1 / tail) - 1)
    phi = rng.random(n, dtype=np.float32) * np.float32(2 * np.pi)
    return np.stack([radius * np.cos(phi), radius * np.sin(phi)])


@dataclass(frozen=True)
class Source:
    """The primaries of one kind.

    Attributes:
        weight: Share among the primaries.
        energy: Parameters of the beta distribution of momentum over the beam's.
        temperature: Slope of the transverse momentum in GeV/c at a tenth of the beam momentum; the mean is twice that.
    """

    weight: float
    energy: tuple[float, float]
    temperature: float


@dataclass(frozen=True)
class Forward:
    """Primaries near the beam: a spectrum along it, a soft one across it, on both sides of the interaction point.

    Attributes:
        sources: What is produced, by PDG code.
        beam: Beam momentum in GeV/c.
        crossing: Beam crossing angle in x and y, rad; it tilts both sides the same way.
        forward: Share of primaries towards positive z.
        seagull: Power of the momentum by which the transverse momentum rises (the seagull effect).
        vertex: Mean and width of the vertex in x, y, z, cm.
    """

    sources: dict[int, Source]
    beam: float
    crossing: tuple[float, float] = (0.0, 0.0)
    forward: float = 0.5
    seagull: float = 0.7
    vertex: tuple[tuple[float, float], ...] = ((0.0, 4.2e-6), (0.0, 4.4e-6), (0.00107, 0.0245))

    def momenta(self, pdg: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Momenta in GeV/c, shape (n, 3)."""
        a, b = np.array([self.sources[int(p)].energy for p in pdg]).reshape(-1, 2).T
        size = self.beam * rng.beta(a, b).clip(1e-3)
        slope = np.array([self.sources[int(p)].temperature for p in pdg])
        slope *= (10 * size / self.beam) ** self.seagull
        pt, phi = rng.gamma(2.0, slope).clip(max=0.9 * size), rng.uniform(0, 2 * np.pi, len(pdg))
        px, py = (pt * f(phi) + c * size for f, c in zip((np.cos, np.sin), self.crossing, strict=True))
        # Sides alternate along type and momentum, so that small samples are balanced, too.
        steps = np.diff(np.floor((np.arange(len(pdg) + 1) + rng.random()) * self.forward))
        side = np.empty(len(pdg))
        side[np.lexsort((size, pdg))] = np.where(steps > 0, 1.0, -1.0)
        return np.stack([px, py, side * np.sqrt(size**2 - pt**2)], 1)


@dataclass(frozen=True)
class Pseudorapidity:
    """Primaries flat in pseudorapidity, with an exponential momentum, on the positive side.

    Attributes:
        sources: What is produced, by PDG code; ``energy`` is not used.
        eta: Range of pseudorapidity.
        momentum: Mean momentum in GeV/c.
        vertex: Mean and width of the vertex in x, y, z, cm.
    """

    sources: dict[int, Source]
    eta: tuple[float, float]
    momentum: float
    vertex: tuple[tuple[float, float], ...] = ((0.0, 4.2e-6), (0.0, 4.4e-6), (0.00107, 0.0245))

    def momenta(self, pdg: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Momenta in GeV/c, shape (n, 3)."""
        eta, phi = rng.uniform(*self.eta, len(pdg)), rng.uniform(0, 2 * np.pi, len(pdg))
        size = 10.0 + rng.exponential(self.momentum, len(pdg))
        return size[:, None] * np.stack([np.cos(phi) / np.cosh(eta), np.sin(phi) / np.cosh(eta), np.tanh(eta)], 1)


@dataclass(frozen=True)
class Setup:
    """What surrounds a detector.

    Attributes:
        primaries: Where primaries come from.
        stations: What they meet on the way, in order of z.
        hadronic: The calorimeter's answer to hadrons.
        electronic: Its answer to photons and electrons.
        acceptance: Kept responses per attempt, averaged over primaries; measured.
        artifacts: Probability of a response with hundreds of times too many photons, as once seen in real output.
    """

    primaries: Forward | Pseudorapidity
    stations: tuple[Station, ...]
    hadronic: Light
    electronic: Light
    acceptance: float
    artifacts: float = 1e-5


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


def get_setup(detector: Detector) -> Setup:
    """Returns the setup of a detector.

    Raises:
        ValueError: If there is none for a detector of that name.
    """
    try:
        return SETUPS[detector.name]
    except KeyError:
        raise ValueError(f"cannot simulate detector {detector.name!r}; expected one of {', '.join(SETUPS)}") from None


def draw_primaries(n: int, detector: str | Detector, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws primaries from the mix and the spectra of a detector's setup.

    Types are drawn by systematic sampling, so that even a small sample has the right mix.

    Args:
        n: How many.
        detector: A detector or its name.
        seed: The seed; independent of the responses' stream of the same seed.

    Returns:
        Features (n, 9), float64, in the order and units of :data:`calosim.rootio.FEATURES`, and PDG codes (n,), int32.

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
    mass, charge, _ = _properties(pdg)
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
    _properties(pdg)  # an unknown code is an error here, not in a thread
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
    em = np.isin(arrived.pdg, _ELECTROMAGNETIC)
    photons = []
    for light, which in ((setup.electronic, em), (setup.hadronic, ~em & ~np.isin(arrived.pdg, _DARK))):
        shower = arrived.select(which)
        counts = light.counts(shower.energy, _properties(shower.pdg).charge == 0, rng)
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
        mass, _, ctau = _properties(flight.pdg)
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


#: Primaries of the ALICE data, by PDG code. Weights: see :func:`simulate`.
_ZDC_SOURCES: dict[int, Source] = {
    22: Source(608, (0.55, 5.2), 0.14),
    2112: Source(284, (1.2, 11.0), 0.10),
    2212: Source(232, (2.2, 3.2), 0.12),
    3122: Source(21, (9.0, 20.0), 0.09),
    310: Source(44, (20.0, 40.0), 0.33),
    130: Source(17, (1.2, 8.0), 0.14),
    3222: Source(5, (26.0, 25.0), 0.16),
    3112: Source(4, (2.5, 6.0), 0.14),
    211: Source(80, (1.2, 8.0), 0.14),
    -211: Source(50, (1.2, 8.0), 0.14),
    321: Source(24, (1.2, 8.0), 0.14),
    -321: Source(12, (1.2, 8.0), 0.14),
    -2112: Source(16, (1.2, 8.0), 0.14),
    -2212: Source(6, (1.2, 8.0), 0.14),
    -3122: Source(6, (1.2, 8.0), 0.14),
    3322: Source(3, (1.2, 8.0), 0.14),
    3312: Source(2, (1.2, 8.0), 0.14),
    -3222: Source(2, (1.2, 8.0), 0.14),
    -3112: Source(2, (1.2, 8.0), 0.14),
    -3322: Source(1, (1.2, 8.0), 0.14),
    -3312: Source(1, (1.2, 8.0), 0.14),
}
_ZDC = Forward(_ZDC_SOURCES, beam=6500.0, crossing=(12.5e-6, 30e-6), forward=0.5165)
_HADRONS = ((22, 0.45), (2112, 0.25), (211, 0.15), (-211, 0.15))
_ELECTRONS = ((22, 0.7), (11, 0.15), (-11, 0.15))
_LINE = (
    # Windows, flanges and gas upstream of the dipole: charged primaries make light in ZN by what they knock on here.
    Material(
        5500.0,
        aperture=(4.0, 4.0),
        inside=0.25,
        outside=0.95,
        hadronic=Cascade(_HADRONS, lost=0.3, visible=(2.0, 4.0), temperature=0.12, clumping=0.3),
        electronic=Cascade(_ELECTRONS, lost=0.3, visible=(1.0, 12.0), temperature=0.03),
    ),
    Dipole(),
    # Jaws of a vertical collimator close to the calorimeter, a slit for the neutral particles.
    Material(
        10800.0,
        aperture=(3.6, 0.8),
        inside=0.02,
        outside=0.98,
        hadronic=Cascade(_HADRONS, lost=0.9, visible=(1.0, 4.0), temperature=0.15),
        electronic=Cascade(_ELECTRONS, lost=0.0, visible=(1.0, 12.0), temperature=0.015),
    ),
)
_FOCAL_SOURCES = {
    code: Source(weight, (1.0, 1.0), 0.2)
    for code, weight in {211: 0.3, -211: 0.3, 22: 0.1, 2212: 0.1, 2112: 0.1, 130: 0.05, 321: 0.05}.items()
}

#: What surrounds each detector. ZN is calibrated; for ZP and FoCal-H the numbers are sensible, no more.
SETUPS: dict[str, Setup] = {
    "zn": Setup(
        primaries=_ZDC,
        stations=_LINE,
        hadronic=Light(0.93, 0.48, 1.85, 0.02, 0.11, 0.20, 8, 0.5, 0.30, 2.0, missed=0.05, partial=0.035),
        electronic=Light(1.26, 0.60, 0.0, 0.02, 0.12, tail=1.15),
        acceptance=0.165,
    ),
    "zp": Setup(
        primaries=_ZDC,
        stations=_LINE,
        hadronic=Light(0.35, 0.48, 2.2, 0.05, 0.15, 0.25, 8, 0.5, 0.15, 2.0),
        electronic=Light(0.5, 0.60, 0.0, 0.02, 0.15, tail=1.25),
        acceptance=0.0195,
    ),
    "focal_h": Setup(
        primaries=Pseudorapidity(_FOCAL_SOURCES, eta=(3.4, 5.8), momentum=150.0),
        stations=(),
        hadronic=Light(8.0, 0.45, 2.0, 0.08, 0.8, 1.5, 8, 0.5, 0.2, 12.0),
        electronic=Light(10.0, 0.60, 0.3, 0.02, 0.8, tail=1.25),
        acceptance=1.0,
    ),
}
