"""calosim: fast simulation of ALICE forward calorimeters with normalizing flows.

What is used from Python is here, and is imported when it is first used: ``import calosim`` itself takes no time.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

#: Where the public names live.
_HOMES: dict[str, str] = {
    "Convert": "calosim.options",
    "Evaluate": "calosim.options",
    "FastSimulator": "calosim.simulation.simulator",
    "PhotonSum": "calosim.models.photon_sum",
    "RootDataModule": "calosim.data.datamodule",
    "Showers": "calosim.data.record",
    "Student": "calosim.models.student",
    "Teacher": "calosim.models.teacher",
    "convert": "calosim.data.reading",
    "evaluate": "calosim.evaluation.evaluate",
    "get_detector": "calosim.detectors",
    "read": "calosim.data.reading",
    "simulate": "calosim.montecarlo.simulate",
    "write": "calosim.data.root",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'calosim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
