"""Speed: times are per response, whatever the batch."""

from __future__ import annotations

from calosim.models.shape import ShapeModule
from calosim.studies.speed import generation_times, speed_table


def test_generation_times_are_per_response(run_folders, showers):
    times = generation_times(ShapeModule.load(run_folders["teacher"]), showers, (1, 4), repeats=1)
    assert set(times) == {"batch 1", "batch 4", "sequential"}
    assert all(0 < t < 60 for t in times.values())


def test_what_was_not_measured_stays_empty(judged):
    from calosim.studies.plan import load_plan

    text = speed_table(load_plan(judged), {"bright": {"parameters": 1234, "batch 1": 0.5}}, {})
    assert text.endswith("| too bright | 1,234 |  | 500.00 |  |  |\n")
