"""A toy Monte Carlo: primaries, transport with decays, showers, photon images. It is a model, not a simulation.

It stands in for the ALICE data, which is not public, so that everything downstream runs on ROOT input with physics in
it: straight flight, magnetic bending, relativistic decay lengths, isotropic two-body decays, showers with sub-showers.
**It leaves out**: a geometry (beam pipe and collimators are thin planes with a rectangular hole), a magnetic lattice (one
thin dipole), energy loss, shower development in depth, the angle of incidence, fibres and optics, three-body decays
(K0L flies as if stable; charged kaons decay only through their two-body channels), correlations between the particles
of one event, and everything low in energy. Its parameters were tuned so that published averages come out (see
:mod:`calosim.montecarlo.calibration`); nothing beyond those averages is to be believed.
"""

from calosim.montecarlo.flight import Flight, decay, two_body
from calosim.montecarlo.setups import SETUPS, Setup
from calosim.montecarlo.simulate import (
    Truth,
    distinct_primaries,
    draw_primaries,
    illuminate,
    simulate,
    simulate_matched,
    simulate_with_truth,
    transport,
)

__all__ = [
    "SETUPS",
    "Flight",
    "Setup",
    "Truth",
    "decay",
    "distinct_primaries",
    "draw_primaries",
    "illuminate",
    "simulate",
    "simulate_matched",
    "simulate_with_truth",
    "transport",
    "two_body",
]
