r"""The calorimeters: geometry, read-out channels and where each number comes from.

A detector is one frozen :class:`Detector`; :data:`DETECTORS` holds those that ship with calosim. Adding one is adding
a row here and a file in ``conf/data``.

References:
    | ALICE ZDC geometry and read-out: AliceO2Group/AliceO2, ``Detectors/ZDC`` (``Geometry.h``, ``SpatialPhotonResponse``)
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import numpy as np

__all__ = ["CONVENTIONS", "DETECTORS", "Convention", "Detector", "get_detector"]

Convention = Literal["paper", "o2"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)

#: Networks are told of ends of straight flights up to at least this far from the detector's centre, in cm.
FARTHEST = 30.0


@dataclass(frozen=True)
class Detector:
    """A pixelated calorimeter read out in five channels.

    Every other pixel (checkerboard) goes to one common photomultiplier, the others to that of their tower.

    Attributes:
        name: The key in :data:`DETECTORS`.
        title: The name for people.
        shape: Pixels along x and y, :math:`(n_x, n_y)`.
        pitch: Pixel pitch in cm.
        center_x: Horizontal position of the detector's centre in cm.
        front_z: Position of the front face along the beam in cm, on the A side (positive) and the C side (negative).
        depth: Length along the beam in cm.
        towers: How the ``o2`` convention groups pixels: ``quadrants`` (2 x 2) or ``strips`` (four along x).
        absorber: Absorber material.
        interaction_length: Nuclear interaction length of the absorber in cm.
        radiation_length: Radiation length of the absorber in cm.
        core_width: What networks measure a straight flight's distance from the face's edge in, in cm: about the half width of
            the core of a shower. That of hadrons in ZN (coppedis/fastsimZDC) if not given. Models are trained with it.
    """

    name: str
    title: str
    shape: tuple[int, int]
    pitch: float
    center_x: float
    front_z: tuple[float, float]
    depth: float
    towers: Literal["quadrants", "strips"]
    absorber: str
    interaction_length: float
    radiation_length: float
    core_width: float = 0.31

    @property
    def pixels(self) -> int:
        """The number of pixels, :math:`n_x n_y`."""
        return self.shape[0] * self.shape[1]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the front face in cm."""
        return self.shape[0] * self.pitch, self.shape[1] * self.pitch

    @property
    def farthest(self) -> float:
        """How far from the centre the end of a straight flight counts in cm; a soft primary's would be anywhere."""
        return max(FARTHEST, self.size[0] / 2, self.size[1] / 2)

    def straight_flight(self, particles: Any, distance: Any = None) -> tuple[Any, Any]:
        """Where primaries would cross the front face if they flew straight on from their vertex.

        Args:
            particles: Features with shape (B, 9), see :data:`calosim.data.record.FEATURES`; numpy or torch.
            distance: Distances of the face from the interaction point in cm, a number or with shape (B,); the A side's if not
                given, from which the C side's differs by 1 in 7500 at most.

        Returns:
            x and y relative to the detector's centre in cm, each with shape (B,).
        """
        vx, vy, px, py, pz = (particles[:, k] for k in (1, 2, 4, 5, 6))
        lever = (abs(self.front_z[0]) if distance is None else distance) / abs(pz).clip(1e-3)
        return vx + px * lever - self.center_x, vy + py * lever

    def replace(self, **changes: Any) -> Detector:
        """Returns a copy with some attributes changed, for instance ``shape`` for FoCal-H studies."""
        return replace(self, **changes)

    @cached_property
    def pixel_centers(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres relative to the detector's centre in cm: x with shape (nx,), y with shape (ny,)."""
        return tuple((np.arange(n) - (n - 1) / 2) * self.pitch for n in self.shape)  # type: ignore[return-value]

    def tower_map(self, convention: Convention = "paper") -> np.ndarray:
        """The tower number 1-4 of every pixel, whether or not that pixel goes to the common channel.

        The public Python codes use quadrants for every detector; O2 reads ZP in four strips along x
        (``floor(4 x / nx) + 1``) and numbers ZN's quadrants differently.

        Args:
            convention: ``paper`` or ``o2``.

        Returns:
            Integers with shape (nx, ny).

        Raises:
            ValueError: If the convention is unknown.
        """
        x, y = np.indices(self.shape)
        right, top = x >= self.shape[0] // 2, y >= self.shape[1] // 2
        match _checked(convention), self.towers:
            case "paper", _:
                return 1 + 2 * right + top
            case "o2", "strips":
                return 4 * x // self.shape[0] + 1
            case _:
                return 1 + right + 2 * top

    def masks(self, convention: Convention = "paper") -> np.ndarray:
        """The pixels of each of the five channels.

        Args:
            convention: ``paper`` (channels 1, 2, 3, 4, common; common where x + y is odd; used by the published
                Wasserstein distances) or ``o2`` (common, 1, 2, 3, 4; common where x + y is even; what O2's
                ``getPhotonsPerChannel`` returns).

        Returns:
            Booleans with shape (5, nx, ny); every pixel is true in exactly one channel.

        Raises:
            ValueError: If the convention is unknown.
        """
        towers = self.tower_map(convention)
        x, y = np.indices(self.shape)
        common = (x + y) % 2 == (1 if convention == "paper" else 0)
        parts = [~common & (towers == t) for t in range(1, 5)]
        return np.stack([*parts, common] if convention == "paper" else [common, *parts])

    def channel_names(self, convention: Convention = "paper") -> tuple[str, ...]:
        """The names of the five channels in the order of :meth:`masks`."""
        towers = tuple(f"tower{t}" for t in range(1, 5))
        return (*towers, "common") if _checked(convention) == "paper" else ("common", *towers)

    def channel_neighbors(self, convention: Convention = "paper") -> tuple[tuple[int, int], ...]:
        """Pairs of neighbouring channels, as indices into the order of :meth:`masks`.

        Towers are neighbours when their regions share an edge; the common channel, interleaved with every tower,
        is a neighbour of all four. The published study (Majerz et al., 2026) does not list its
        pairs; this is our reading of "neighbouring channels".
        """
        towers = self.tower_map(convention)
        touching = set()
        for a, b in ((towers[1:], towers[:-1]), (towers[:, 1:], towers[:, :-1])):
            differ = a != b
            touching |= {(int(min(p)), int(max(p))) for p in zip(a[differ], b[differ], strict=True)}
        names = self.channel_names(convention)
        index = {t: names.index(f"tower{t}") for t in range(1, 5)}
        common = names.index("common")
        return tuple(sorted((index[a], index[b]) for a, b in touching)) + tuple((common, index[t]) for t in range(1, 5))

    def channels(self, images: Any, convention: Convention = "paper") -> Any:
        """Sums the photons of each read-out channel.

        Args:
            images: Photon counts with shape (*, nx, ny); numpy or torch, any device, integer or floating point.
                Torch tensors stay differentiable.
            convention: The channel convention, see :meth:`masks`.

        Returns:
            Channel values with shape (*, 5): int64 for integers, else the type of the images.

        Raises:
            ValueError: If the images do not have the detector's shape, or the convention is unknown.
        """
        if tuple(images.shape[-2:]) != self.shape:
            raise ValueError(
                f"expected {self.title} images (*, {self.shape[0]}, {self.shape[1]}), got {tuple(images.shape)}"
            )
        flat = images.reshape(*images.shape[:-2], self.pixels)
        indices = _channel_indices(self, convention)
        # Sums over index lists, not a matrix product: exact for integers, and autocast or TF32 cannot coarsen them.
        if isinstance(images, np.ndarray):
            dtype = np.int64 if np.issubdtype(images.dtype, np.integer) else images.dtype
            return np.stack([flat[..., i].sum(-1, dtype=dtype) for i in indices], axis=-1)
        import torch  # seconds; who has a tensor has paid them

        sums = [flat.index_select(-1, torch.as_tensor(i, device=flat.device)).sum(-1) for i in indices]
        return torch.stack(sums, dim=-1)


def _checked(convention: str) -> str:
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown channel convention {convention!r}; expected one of {', '.join(CONVENTIONS)}")
    return convention


@lru_cache
def _channel_indices(detector: Detector, convention: Convention) -> tuple[np.ndarray, ...]:
    return tuple(np.flatnonzero(mask) for mask in detector.masks(convention))


#: Geometry from O2's ``Detectors/ZDC/base`` and ``Detectors/FOCAL``; absorber constants from the PDG review.
DETECTORS: dict[str, Detector] = {
    d.name: d
    for d in (
        Detector(
            name="zn",
            title="ZN",
            shape=(44, 44),
            pitch=0.16,
            center_x=0.0,
            front_z=(11259.8, -11261.3),
            depth=100.0,
            towers="quadrants",
            absorber="tungsten alloy, 17.6 g/cm3",
            interaction_length=11.5,
            radiation_length=0.398,
        ),
        Detector(
            name="zp",
            title="ZP",
            shape=(56, 30),
            pitch=0.4,
            center_x=24.35,
            front_z=(11251.8, -11253.3),
            depth=150.0,
            towers="strips",
            absorber="brass",
            interaction_length=18.4,
            radiation_length=1.50,
        ),
        # The real detector is 15 x 15 towers of 6.55 cm; a pixel here is half a tower, fine enough for a shower
        # centre and coarse enough to train on a laptop. Use `replace(shape=..., pitch=...)` for another choice.
        Detector(
            name="focal_h",
            title="FoCal-H",
            shape=(30, 30),
            pitch=3.275,
            center_x=0.0,
            front_z=(764.0, -764.0),
            depth=110.0,
            towers="quadrants",
            absorber="copper",
            interaction_length=15.3,
            radiation_length=1.44,
        ),
    )
}


def get_detector(name: str | Detector) -> Detector:
    """Returns the detector of that name.

    Args:
        name: A key of :data:`DETECTORS`, in any case; a :class:`Detector` is returned as it is.

    Raises:
        ValueError: If there is no such detector.
    """
    if isinstance(name, Detector):
        return name
    try:
        return DETECTORS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown detector {name!r}; expected one of {', '.join(DETECTORS)}") from None
