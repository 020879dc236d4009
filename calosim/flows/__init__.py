"""The flow engine: exact masked and inverse autoregressive spline flows on zuko's lazy API."""

from .autoregressive import AutoregressiveSpline
from .build import Trace, cast, feature_orders, iaf, maf, trace, units
from .prune import prune

__all__ = ["AutoregressiveSpline", "Trace", "cast", "feature_orders", "iaf", "maf", "prune", "trace", "units"]
