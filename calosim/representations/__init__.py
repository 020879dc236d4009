"""Representations of showers: what a flow models, behind one interface, and the features that it is conditioned on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from calosim.representations.base import Representation
from calosim.representations.features import FeatureScaler
from calosim.representations.pixels import PixelConfig, PixelLogits
from calosim.representations.splits import SplitConfig, SplitRepresentation

__all__ = [
    "FeatureScaler",
    "PixelConfig",
    "PixelLogits",
    "Representation",
    "RepresentationConfig",
    "SplitConfig",
    "SplitRepresentation",
    "from_plain",
    "to_plain",
]

#: Settings of any representation; new ones join here.
RepresentationConfig = SplitConfig | PixelConfig

_KINDS: dict[str, type] = {"splits": SplitConfig, "pixels": PixelConfig}


def to_plain(config: RepresentationConfig) -> dict[str, Any]:
    """Settings as plain values, for checkpoints and records."""
    kind = next(name for name, known in _KINDS.items() if type(config) is known)
    return {"kind": kind, **asdict(config)}


def from_plain(values: RepresentationConfig | dict[str, Any]) -> RepresentationConfig:
    """Settings from plain values; settings are returned as they are.

    Raises:
        ValueError: If there is no such representation.
    """
    if not isinstance(values, dict):
        return values
    rest = {**values}
    kind = rest.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"unknown representation {kind!r}; expected one of {', '.join(_KINDS)}")
    return _KINDS[kind](**rest)
