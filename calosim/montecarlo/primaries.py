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
