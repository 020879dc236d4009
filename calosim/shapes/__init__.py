"""Coordinates of showers: what a flow models, behind one interface, and the features that it is conditioned on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from calosim.shapes.coordinates import Coordinates
from calosim.shapes.features import FeatureScaler
from calosim.shapes.pixels import PixelConfig, PixelLogits
from calosim.shapes.splits import SplitConfig, SplitCoordinates

__all__ = [
    "Coordinates",
    "CoordinatesConfig",
    "FeatureScaler",
    "PixelConfig",
    "PixelLogits",
    "SplitConfig",
    "SplitCoordinates",
    "from_plain",
    "to_plain",
]

#: Settings of any coordinates; new ones join here.
CoordinatesConfig = SplitConfig | PixelConfig

_KINDS: dict[str, type] = {"splits": SplitConfig, "pixels": PixelConfig}


def to_plain(config: CoordinatesConfig) -> dict[str, Any]:
    """Settings as plain values, for checkpoints and records."""
    kind = next(name for name, known in _KINDS.items() if type(config) is known)
    return {"kind": kind, **asdict(config)}


def from_plain(values: CoordinatesConfig | dict[str, Any]) -> CoordinatesConfig:
    """Settings from plain values; settings are returned as they are.

    Raises:
        ValueError: If there are no such coordinates.
    """
    if not isinstance(values, dict):
        return values
    rest = {**values}
    kind = rest.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"unknown coordinates {kind!r}; expected one of {', '.join(_KINDS)}")
    return _KINDS[kind](**rest)
