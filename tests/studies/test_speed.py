"""Speed: times are per response, whatever the batch."""

from __future__ import annotations

import pytest

from calosim.models.shower import ShowerModel
from calosim.studies.tables import generation_times, speed_table


@pytest.mark.parametrize("name", ["teacher", "splits"])
def test_generation_times_are_per_response(name, run_folders, showers):
    times = generation_times(ShowerModel.load(run_folders[name]), showers, (1, 4), repeats=1)
    # Only points have an inverse that others take feature by feature.
    assert set(times) == {"batch 1", "batch 4"} | ({"sequential"} if name == "teacher" else set())
    assert all(0 < t < 60 for t in times.values())


def test_what_was_not_measured_stays_empty(judged):
    from calosim.studies.plan import load_plan

    speeds = {"good": {"parameters": 5, "batch 256": 0.1}, "bright": {"parameters": 1234, "batch 1": 0.5}}
    text = speed_table(load_plan(judged), speeds, {})
    assert text.endswith("| too bright | 1,234 |  | 500.00 |  |\n")
