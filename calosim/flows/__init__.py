"""The flow engine: exact masked and inverse autoregressive spline flows on zuko's lazy API."""

from .autoregressive import AutoregressiveSpline
from .build import Trace, cast, feature_orders, iaf, maf, trace, units

__all__ = ["AutoregressiveSpline", "Trace", "cast", "feature_orders", "iaf", "maf", "trace", "units"]
