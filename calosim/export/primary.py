"""The primary in a graph: O2's units to ours, and the features that networks see."""

from __future__ import annotations

import numpy as np

from calosim.export.builder import Builder
from calosim.representations.features import CORE_WIDTH, FeatureScaler
from calosim.representations.splits import FARTHEST

__all__ = ["CHARGE_UNIT", "Primary"]

#: O2 counts charges in units of a third of e, as ROOT's `TParticlePDG::Charge` does.
CHARGE_UNIT = 3.0


class Primary:
    """What is known of a primary.

    Args:
        graph: The graph.
        features: The name of the nine features, (1, 9) float32, in our order and units but for the charge.
        scaler: A scaler, for the detector's geometry.
        charge_unit: How many units of charge are one e; O2's by default.

    Attributes:
        energy: In GeV, (1, 1) float32.
        end: Where the straight flight ends in cm, bounded, x and y, (1, 2) float32.
    """

    def __init__(self, graph: Builder, features: str, scaler: FeatureScaler, charge_unit: float = CHARGE_UNIT):
        g = self.graph = graph
        self.energy, vertex, _, momentum, pz, rest = g.split(features, (1, 2, 1, 2, 1, 2), axis=1)
        others = g.split(features, (6, 3), axis=1)[0]
        mass, charge = g.split(rest, (1, 1), axis=1)
        pz = g("Abs", pz)
        lever = g("Div", scaler.distance, g("Max", pz, 1e-3))
        center = np.array([[scaler.center_x, 0.0]], np.float32)
        spot = g("Sub", g("Add", vertex, g("Mul", momentum, lever)), center)
        self.end = g("Clip", spot, -FARTHEST, FARTHEST)
        half = np.array([scaler.half_size], np.float32)
        inside = g("ReduceMin", g("Sub", half, g("Abs", spot)), np.array([1]), keepdims=1)
        bent = g("Asinh", g("Concat", spot, g("Div", inside, CORE_WIDTH), axis=1))
        log_energy = g("Log", g("Max", self.energy, 1e-3))
        nine = (others, pz, mass, g("Div", charge, charge_unit))
        self._columns = {False: g("Concat", *nine, axis=1), True: g("Concat", *nine, log_energy, bent, axis=1)}

    def standardized(self, scaler: FeatureScaler, photon_sum: str | None = None) -> str:
        """The columns of a scaler, (1, width) float32.

        Args:
            scaler: The scaler.
            photon_sum: The name of the photon sum, (1, 1) float32, if it has that column.
        """
        g, columns = self.graph, self._columns[scaler.physics]
        if photon_sum is not None:
            columns = g("Concat", columns, g("Log", g("Add", photon_sum, 1.0)), axis=1)
        mean, scale = (buffer.numpy()[None] for buffer in (scaler.mean, scaler.scale))
        return g("Div", g("Sub", columns, mean), scale)
