"""The flow engine: exact masked and inverse autoregressive spline flows on zuko's lazy API."""

from .autoregressive import AutoregressiveSpline
from .build import Side, Stage, Trace, cast, feature_orders, iaf, maf, stages, trace, units
from .config import FlowChanges, FlowConfig, Permutation
from .prune import prune
from .splits import InverseSplits, MaskedSplits

__all__ = [
    "AutoregressiveSpline",
    "FlowChanges",
    "FlowConfig",
    "InverseSplits",
    "MaskedSplits",
    "Permutation",
    "Side",
    "Stage",
    "Trace",
    "cast",
    "feature_orders",
    "iaf",
    "maf",
    "prune",
    "stages",
    "trace",
    "units",
]
