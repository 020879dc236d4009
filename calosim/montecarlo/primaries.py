"""Where primary particles come from: their mix, spectra, directions and vertices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Forward", "Pseudorapidity", "Source"]


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
