"""Targets that parts of the toy are held to: the calorimeter's answer to particles on its face, and decays on the way.

References:
    | Photon sums of single tracks and pictures of responses: Jot-De/ZDC_fastsim
    | Lateral profile, containment and resolution of the ZN: coppedis/fastsimZDC
"""

from __future__ import annotations

import numpy as np

from calosim.detectors import get_detector
from calosim.montecarlo.flight import Flight
from calosim.montecarlo.setups import SETUPS
from calosim.montecarlo.targets import BLOCKS, Target, absolute, measured, relative
from calosim.montecarlo.transport import illuminate, transport
from calosim.particles import particle_symbol

__all__ = ["face_targets", "survival_targets"]


def face_targets(seed: int, scale: float) -> list[Target]:
    """The ZN alone: particles placed on its front face."""
    rng, n = np.random.default_rng(seed), int(8000 * scale)
    targets = _neutrons(n, int(2000 * scale), rng)
    targets += _yields(n, rng)
    targets += _soft_photons(n, int(2000 * scale), rng)
    targets += _profiles(rng)
    return targets + _resolutions(n, rng)


def _on_face(pdg: int, energy: np.ndarray, xy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images of particles of one type that hit the front face of the ZN, shape (M, nx, ny)."""
    n = len(energy)
    momentum = np.column_stack([np.zeros((n, 2)), energy])
    position = np.column_stack([xy, np.zeros(n)])
    flight = Flight(np.arange(n), np.full(n, pdg), momentum, position, np.ones(n, dtype=bool))
    return illuminate(flight, n, get_detector("zn"), SETUPS["zn"], rng)[0]


def _central(n: int, rng: np.random.Generator) -> np.ndarray:
    """Positions within a millimetre of the centre in cm, shape (n, 2)."""
    return rng.normal(0.0, 0.05, (n, 2))


def _radii(image: np.ndarray) -> np.ndarray:
    """Radius in pixels around the centroid that holds 25, 50, 75 and 90 % of the photons."""
    x, y = np.indices(image.shape)
    total = image.sum()
    radius = np.hypot(x - (image * x).sum() / total, y - (image * y).sum() / total).ravel()
    order = np.argsort(radius)
    return radius[order][np.searchsorted(np.cumsum(image.ravel()[order]), np.array([0.25, 0.5, 0.75, 0.9]) * total)]


def _neutrons(n: int, examined: int, rng: np.random.Generator) -> list[Target]:
    """Spectator neutrons of the public list: 70 GeV to 1 TeV, within a millimetre of the centre."""
    energy = rng.uniform(70, 1000, n)
    images = _on_face(2112, energy, _central(n, rng), rng)
    return _neutron_sums(energy, images.sum((1, 2))) + _neutron_shapes(energy, images, examined)


def _neutron_sums(energy: np.ndarray, total: np.ndarray) -> list[Target]:
    group, block, each = "neutrons on the face", np.arange(len(energy)) % BLOCKS, total / energy
    half = 0.5 * np.median(each)

    def line(m: np.ndarray) -> np.ndarray:
        return np.polyfit(energy[m], total[m], 1)

    def core(m: np.ndarray) -> float:
        low, high = np.percentile(each[m & (each > half)], [16, 84])
        return (high - low) / 2 / np.median(each[m & (each > half)])

    targets = [
        measured(group, "photons/GeV", "0.658", lambda m: each[m].mean(), block, relative(0.658, 0.05)),
        measured(group, "spread of photons/GeV", "0.197", lambda m: each[m].std(), block, relative(0.197, 0.25)),
        measured(group, "slope of N(E)", "0.692", lambda m: line(m)[0], block, relative(0.692, 0.1)),
        measured(group, "N(E) at 500 GeV", "332", lambda m: float(np.polyval(line(m), 500)), block, relative(332, 0.1)),
        measured(group, "no light, %", "about 5", lambda m: 100 * (total[m] == 0).mean(), block, absolute(5, 2)),
        measured(
            group, "below half the median, %", "7", lambda m: 100 * (each[m] < half).mean(), block, absolute(7, 2)
        ),
    ]
    for middle, width in ((150, 0.22), (450, 0.16), (950, 0.12)):
        near = np.abs(energy - middle) < 50
        name, band = f"core width at {middle} GeV", relative(width, 0.25)
        targets.append(measured(group, name, f"{width}", lambda m, s=near: core(m & s), block, band))
    return targets


def _neutron_shapes(energy: np.ndarray, images: np.ndarray, examined: int) -> list[Target]:
    group, block, total = "neutrons on the face", np.arange(len(energy)) % BLOCKS, images.sum((1, 2))
    nonempty = np.flatnonzero((energy > 100) & (energy < 920) & (total > 50))[:examined]
    radii = np.array([_radii(images[i]) for i in nonempty])
    ranges = {25: (1.8, 1.0, 2.9), 50: (4.2, 3.1, 6.9), 75: (9.8, 7.2, 13.6), 90: (16, 11.5, 18)}
    targets = [
        measured(
            group,
            f"radius of {percent} % of the light, pixels",
            f"{typical:g} ({inner:g}-{outer:g})",
            lambda m, i=i: np.median(radii[m, i]),
            block[nonempty],
            (inner, outer),
        )
        for i, (percent, (typical, inner, outer)) in enumerate(ranges.items())
    ]
    lit_pixels, hottest = (images > 0).sum((1, 2)), images.max((1, 2)) / np.maximum(total, 1)
    for photons, pixels in ((70, 44), (94, 70), (170, 95), (283, 153), (401, 195), (698, 103)):
        near = np.abs(total / photons - 1) < 0.1
        name, band = f"lit pixels at {photons} photons", relative(pixels, 0.25)
        targets.append(
            measured(group, name, f"{pixels}", lambda m, s=near: np.median(lit_pixels[m & s]), block, band, "one image")
        )
    bright, name = total > 100, "hottest pixel, % of the sum"
    share = measured(group, name, "5-10", lambda m: 100 * np.median(hottest[m & bright]), block, (5, 10))
    return [*targets, share]


def _yields(n: int, rng: np.random.Generator) -> list[Target]:
    """Photons per GeV of photons and charged pions."""
    block, targets = np.arange(n) % BLOCKS, []
    for name, code, low, high, value in (
        ("γ 5-50 GeV", 22, 5, 50, 0.98),
        ("γ 50-100 GeV", 22, 50, 100, 1.15),
        ("π± 5-20 GeV", 211, 5, 20, 0.48),
        ("π± 20-50 GeV", 211, 20, 50, 0.58),
        ("π± > 50 GeV", 211, 50, 300, 0.68),
    ):
        energy = low * (high / low) ** rng.random(n)
        xy = rng.normal(0, 1.2, (n, 2)).clip(-3.4, 3.4)
        each = _on_face(code, energy, xy, rng).sum((1, 2)) / energy
        band, note = relative(value, 0.1), "placed as in the public list"
        mean = lambda m, y=each: y[m].mean()  # noqa: E731
        targets.append(measured("photons/GeV on the face", name, f"{value}", mean, block, band, note))
    return targets


def _soft_photons(n: int, examined: int, rng: np.random.Generator) -> list[Target]:
    """Photons as soft as that of a published picture."""
    group, block, note = "γ of 13 GeV", np.arange(n) % BLOCKS, "one image"
    images = _on_face(22, np.full(n, 13.0), _central(n, rng), rng)
    total, lit_pixels = images.sum((1, 2)), (images > 0).sum((1, 2))
    radii = np.array([_radii(i) if i.any() else np.full(4, np.nan) for i in images[:examined]])
    targets = [
        measured(group, "photons", "12", lambda m: total[m].mean(), block, relative(12, 0.25), note),
        measured(group, "lit pixels", "7", lambda m: np.median(lit_pixels[m]), block, relative(7, 0.35), note),
    ]
    for i, (percent, value) in enumerate({25: 0.8, 50: 1.5, 75: 2.1, 90: 3.6}.items()):
        name, band = f"radius of {percent} % of the light, pixels", relative(value, 0.35)
        median = lambda m, i=i: np.nanmedian(radii[m, i])  # noqa: E731
        targets.append(measured(group, name, f"{value}", median, block[: len(radii)], band, note))
    return targets


def _half_width(x: np.ndarray, guess: float) -> float:
    """Half width at half maximum of a peak at 0, from counts in bins of a tenth of the guess."""
    counts, edges = np.histogram(np.abs(x), np.arange(0, 4, 0.1) * guess)
    return float(edges[np.flatnonzero(counts < 0.5 * counts[:2].mean())[0]])


_PARAMETRIZATION = "parametrization (fastsimZDC)"


def _profiles(rng: np.random.Generator) -> list[Target]:
    """Width and containment of showers."""
    targets, energy = [], np.full(1000, 500.0)
    for kind, code, light, hwhm, kept in (
        ("hadronic", 211, SETUPS["zn"].hadronic, 0.31, (0.95, 0.82, 0.53)),
        ("electromagnetic", 22, SETUPS["zn"].electronic, 0.108, (1.0, 0.96, 0.55)),
    ):
        _, x = light.photon_positions(np.zeros((2000, 2)), np.full(2000, 500), rng)
        name, ours = f"{kind} half width at half maximum, cm", _half_width(x[0], hwhm)
        targets.append(Target(_PARAMETRIZATION, name, f"{hwhm}", ours, band=relative(hwhm, 0.25)))
        center = _on_face(code, energy, np.zeros((1000, 2)), rng).sum((1, 2)).mean()
        for distance, value in zip((2.0, 3.0, 3.5), kept, strict=True):
            aside = _on_face(code, energy, np.tile([distance, 0.0], (1000, 1)), rng).sum((1, 2))
            name, error = (
                f"{kind} light at {distance:g} cm over that at the centre",
                aside.std() / center / len(aside) ** 0.5,
            )
            band = absolute(value, 0.05)
            targets.append(Target(_PARAMETRIZATION, name, f"{value}", aside.mean() / center, error, band))
    return targets


def _resolutions(n: int, rng: np.random.Generator) -> list[Target]:
    block, targets = np.arange(n) % BLOCKS, []
    for energy in (10.0, 50.0):
        sums = _on_face(22, np.full(n, energy), _central(n, rng), rng).sum((1, 2))
        expected = 0.9 / np.sqrt(energy)
        name, band = f"electromagnetic resolution at {energy:g} GeV", relative(expected, 0.25)
        spread = lambda m, s=sums: s[m].std() / s[m].mean()  # noqa: E731
        targets.append(measured(_PARAMETRIZATION, name, f"{expected:.3f}", spread, block, band))
    return targets


def survival_targets(seed: int, scale: float) -> list[Target]:
    """Survival to the front face, without anything in the way."""
    detector, rng = get_detector("zn"), np.random.default_rng(seed)
    targets = []
    n = int(20_000 * scale)
    for code, survival in {
        3122: (0.04, 0.20, 0.45, 0.59),
        310: (0.015, 0.12, 0.35, 0.50),
        3222: (0.0, 0.004, 0.06, 0.16),
    }.items():
        for momentum, value in zip((500.0, 1000.0, 2000.0, 3000.0), survival, strict=True):
            particles = np.zeros((n, 9))
            particles[:, 6] = momentum
            alive = transport(particles, np.full(n, code), detector, (), rng).primary.sum() / n
            name, error = f"{particle_symbol(code)} of {momentum / 1000:g} TeV", float(np.sqrt(alive * (1 - alive) / n))
            targets.append(Target("survival to 112.6 m", name, f"{value:g}", alive, error, absolute(value, 0.015)))
    return targets
