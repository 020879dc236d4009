"""Rows to judge: a data set as a training splits it, and showers as if all of them had been selected."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.data.record import Showers
from calosim.data.splits import ShowerData
from calosim.evaluation.selection import Selection


@pytest.fixture(scope="session")
def data(root_file) -> ShowerData:
    """The data set of ``root_file``, split."""
    return ShowerData(str(root_file))


@pytest.fixture(scope="session")
def all_of():
    """Selects all of some showers: ``all_of(showers)``."""

    def select(showers: Showers) -> Selection:
        return Selection(showers, np.arange(len(showers)), showers.primary_ids, np.ones(len(showers), dtype=bool))

    return select
