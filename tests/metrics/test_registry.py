"""One entry is all that a metric needs: it has a value, an interval, tables, a definition and a place in comparisons."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calosim.evaluation.evaluate import as_csv
from calosim.evaluation.samples import CHANNELS, measure, packed, sample
from calosim.evaluation.stored import Evaluation
from calosim.io import write_json, write_npz
from calosim.metrics.bootstrap import resampled_mean
from calosim.metrics.registry import METRICS, Metric, definition_table, definitions
from calosim.particles import groups
from calosim.studies.plan import Table
from calosim.studies.statistics import Row, fill_cells, winners


def brightness(rows):
    """How much brighter samples are than the Monte Carlo, in photons."""
    more = np.abs(rows.channels.sum(2).mean(1) - rows.reference.sum(1))
    return {name: float(more[some].mean()) for name, some in groups(rows.pdg)}


def resampled_brightness(runs, counts):
    group, responses = np.unique(runs[0].primary_ids, return_inverse=True, return_counts=True)[1:]
    more = np.mean([np.abs(run.channels.sum(2).mean(1) - run.reference.sum(1)) for run in runs], axis=0)
    return resampled_mean(np.bincount(group, more) / responses, responses, counts)


@pytest.fixture
def toy(monkeypatch):
    """Registers a metric."""
    entry = Metric("toy", "mean of |n̂ − n|", "photons", "how bright", ".1f", brightness, resampled_brightness)
    monkeypatch.setitem(METRICS, "toy", entry)


@pytest.fixture
def evaluations(showers, tmp_path, toy):
    """Evaluations of a model that is twice too bright, and of one that is thrice."""
    known = showers.geometry.channels(showers.images), showers.pdg, showers.primary_ids, showers.geometry
    found = {}
    for times in (2, 3):
        bright = {"shape": lambda run, n, k=times: k * showers.images[n]}
        samples = sample(showers, bright, runs=2, responses=1, quiet=True)
        measured = measure(samples["shape"].runs(*known), resamples=100)
        folder = tmp_path / str(times)
        arrays = dict(zip(("reference", "pdg", "primary_ids"), known[:3], strict=True))
        arrays |= {"natural": np.ones(len(showers), dtype=bool), "rows": np.arange(len(showers))}
        write_npz(folder / Evaluation.SAMPLES, **packed(samples), **arrays)
        write_json(folder / Evaluation.RECORD, {"images": {"shape": measured}, "data": {"detector": "zn"}})
        found[f"{times} times"] = Evaluation(folder)
    return found


def test_a_metric_with_an_entry_is_everywhere(evaluations, showers):
    images = evaluations["2 times"].record["images"]
    mean, low, high = (images["shape"][what]["toy_all"] for what in ("mean", "low", "high"))
    assert mean == pytest.approx(showers.photon_sum.mean())
    assert low < mean < high
    assert "toy_neutron" in images["shape"]["mean"]
    (table,) = (table for table in CHANNELS.tables(images) if table.startswith("| toy, photons | all |"))
    assert f"{mean:.1f} [{low:.1f}, {high:.1f}]" in table
    rows = [row for row in csv.DictReader(io.StringIO(as_csv({"images": images}))) if row["metric"] == "toy"]
    assert {row["particle_or_channel"] for row in rows} >= {"all", "neutron"}
    assert float(rows[0]["low"]) == low
    assert "| toy | mean of \\|n̂ − n\\| | photons | as low as the floor's | how bright |" in definition_table()
    # In the comparison it has cells with intervals, a paired comparison, and a winner.
    lines = [Row(name, name, [(evaluation, None)]) for name, evaluation in evaluations.items()]
    table = Table(("all",), ("toy",), ("shape",), reference="2 times")
    cells = fill_cells(lines, table, 100, quiet=True)
    worse = cells["shape", "toy", "all", "3 times"]
    assert worse.mean == pytest.approx(2 * mean)
    assert worse.interval[0] < worse.mean < worse.interval[1]
    assert worse.versus.low > 0
    told = winners(table, cells, {row.label: row.title for row in lines})
    assert "**2 times** (1.00)" in told
    assert "The lowest mean rank over toy;" in told


def test_an_evaluation_without_the_metric_is_named(evaluations, monkeypatch):
    monkeypatch.delitem(evaluations["3 times"].metrics["shape"]["mean"], "toy_all")
    lines = [Row(name, name, [(evaluation, None)]) for name, evaluation in evaluations.items()]
    with pytest.raises(ValueError, match="3: expected toy of all, which it has not; evaluate again"):
        fill_cells(lines, Table(("all",), ("toy",), ("shape",)), 10, quiet=True)


def test_a_plan_may_name_all_that_is_registered(toy):
    assert Table.of(Path("plan"), {"metrics": list(METRICS)}, {}).metrics == list(METRICS)
    with pytest.raises(ValueError, match=r"unknown metric 'tea'; expected ws, mae_cond, .*, toy"):
        Table.of(Path("plan"), {"metrics": ["tea"]}, {})


def test_every_number_is_told_in_words():
    assert all(all(definition) for definition in definitions())
    assert definition_table().count("\n") == len(definitions()) + 1


def test_the_registry_needs_no_torch():
    code = "import sys, calosim.metrics.registry, calosim.evaluation.stored; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
