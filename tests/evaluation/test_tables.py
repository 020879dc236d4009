"""Tables: the CSV holds every number once, Markdown the study's particles, and a dash where nothing was compared."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from calosim.evaluation.evaluate import as_csv, as_markdown
from calosim.evaluation.samples import measure, sample
from calosim.evaluation.sums import photon_report


@pytest.fixture(scope="module")
def results(showers):
    """An evaluation of showers that are twice too bright, with one neutron among 60 rows."""
    photons = np.flatnonzero(showers.pdg == 22)[:59]
    few = showers.select(np.concatenate([photons, np.flatnonzero(showers.pdg == 2112)[:1]]))
    samples = sample(few, {"twice": lambda run, n: 2 * few.images[n // 2]}, runs=2, responses=2, quiet=True)
    known = few.geometry.channels(few.images), few.pdg, few.primary_ids, few.geometry
    found = measure(samples["twice"].runs(*known))
    return {
        **{"rows": 60, "primaries": 30, "split": "test", "responses": 2, "runs": 2, "images": {"twice": found}},
        "photon_sum": {"mixture (a|b)": photon_report(2 * few.photon_sum[:, None], few.photon_sum, few.pdg)},
    }


def test_csv_holds_every_number_once(results):
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    numbers = {(r["candidate"], f"{r['metric']}_{r['particle_or_channel']}"): float(r["mean"]) for r in rows}
    expected = {("twice", key): value for key, value in results["images"]["twice"]["mean"].items()}
    for name, report in results["photon_sum"]["mixture (a|b)"].items():
        expected |= {("mixture (a|b)", f"photon_sum_{key}_{name}"): value for key, value in report.items()}
    assert len(rows) == len(numbers)
    assert numbers == pytest.approx(expected, nan_ok=True)
    assert {r["metric"] for r in rows if r["particle_or_channel"] == "tower1"} == {"ws"}


def test_markdown_shows_the_studys_particles(results):
    text = as_markdown(results)
    lines = text.splitlines()
    mean = results["images"]["twice"]["mean"]
    head = "60 test rows of 30 primaries; 2 responses per row, 2 runs; mean ± standard deviation over runs, where there are "
    head += "several. Lower is better"
    assert lines[0].startswith(head)
    assert "| WS, photons | all | γ | n |" in lines
    assert f"| twice | {mean['ws_all']:.2f} | {mean['ws_gamma']:.2f} | {mean['ws_neutron']:.2f} |" in lines
    # One neutron has no dispersion.
    assert next(line for line in lines[lines.index("| δ | all | γ | n |") :] if "twice" in line).endswith("| – |")
    assert sum("mixture (a\\|b)" in line for line in lines) == 6  # errors, and quantiles
    assert "lacks the primaries of 1 row;" in as_markdown({**results, "floor_rows_without_their_primary": 1})
    assert "lacks the primaries of 7 rows" in as_markdown({**results, "floor_rows_without_their_primary": 7})
