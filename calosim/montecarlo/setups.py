"""What surrounds each detector; adding a detector to the toy Monte Carlo is adding a :class:`Setup` to :data:`SETUPS`.

References:
    Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from dataclasses import dataclass

from calosim.detectors import Detector
from calosim.montecarlo.matter import Cascade, Dipole, Light, Material, Station
from calosim.montecarlo.primaries import Forward, Pseudorapidity, Source

__all__ = ["SETUPS", "Setup", "get_setup"]


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


def get_setup(detector: Detector) -> Setup:
    """Returns the setup of a detector.

    Raises:
        ValueError: If there is none for a detector of that name.
    """
    try:
        return SETUPS[detector.name]
    except KeyError:
        raise ValueError(f"cannot simulate detector {detector.name!r}; expected one of {', '.join(SETUPS)}") from None


#: Primaries of the ALICE data, by PDG code. Weights: see :func:`calosim.montecarlo.simulate`.
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
