r"""What particles meet: a dipole, thin material on the way, and the light that a calorimeter makes of them.

References:
    | Lateral profile, containment and resolution of the ZN: coppedis/fastsimZDC
    | Photon sums of single tracks: Jot-De/ZDC_fastsim
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from calosim.montecarlo.flight import Flight, properties

__all__ = ["ELECTROMAGNETIC", "INVISIBLE", "Cascade", "Dipole", "Light", "Material", "Station"]

ELECTROMAGNETIC = (22, 11, -11)
INVISIBLE = (12, -12, 13, -13, 14, -14, 16, -16)  # neutrinos, and muons, which leave next to no light


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
        px = flight.momentum[:, 0] + self.kick * properties(flight.pdg).charge
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
        chance = np.where(within, self.inside, self.outside) * ~np.isin(flight.pdg, INVISIBLE)
        hit = rng.random(len(flight)) < chance
        light = np.isin(flight.pdg, ELECTROMAGNETIC)
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
