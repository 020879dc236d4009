"""Variants in an evaluation: of the same draws, real numbers where the code rounds none, and whole ones else."""

from __future__ import annotations

import numpy as np
import pytest

from calosim import FastSimulator
from calosim.evaluation.evaluate import evaluate
from calosim.evaluation.samples import unrounded_channels
from calosim.evaluation.selection import select_rows
from calosim.evaluation.stored import Evaluation
from calosim.io import read_npz
from calosim.metrics.wasserstein import VARIANTS, variant_metrics
from calosim.options import ClassifierOptions, Evaluate, FloorOptions, Models, Protocol


def test_unrounded_channels_are_of_the_same_draws(run_folders, data):
    simulator = FastSimulator.load(run_folders["teacher"], run_folders["photons"])
    protocol = Protocol(responses=2, rows=20)
    rows = select_rows(data, protocol)
    found = unrounded_channels(simulator, rows, protocol, 1, own_sums=False)
    row, generation = np.divmod(np.arange(2 * len(rows)), 2)
    keys = rows.positions[row] * 2 + generation
    showers = rows.showers
    images = simulator.sample(
        showers.particles[row], showers.pdg[row], protocol.seed + 1, keys, showers.photon_sum[row]
    )
    counts = showers.geometry.channels(images).reshape(found.shape)
    assert not np.array_equal(found, found.round())
    assert np.corrcoef(found.ravel(), counts.ravel())[0, 1] > 0.9
    # A member that is the model itself answers alike.
    code = int(showers.pdg[0])
    member = FastSimulator(simulator.shower, simulator.photons, members={code: simulator.shower})
    np.testing.assert_allclose(unrounded_channels(member, rows, protocol, 1, False), found, rtol=1e-3, atol=0.1)
    assert not np.allclose(unrounded_channels(simulator, rows, protocol, 1, True), found)


@pytest.mark.parametrize("kind", ["teacher", "splits"])
def test_an_evaluation_has_a_table_of_them(kind, run_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("calosim.evaluation.evaluate._draw", lambda *_: [])
    protocol = Protocol(runs=2, responses=2, rows=20, variants=list(VARIANTS))
    settings = {"floors": FloorOptions(references=False), "classifier": ClassifierOptions(classifier=False)}
    models = Models(str(run_folders[kind]))
    evaluate(Evaluate(str(tmp_path), models, protocol=protocol, quiet=True, **settings))
    found, answers = Evaluation(tmp_path).record["variants"], read_npz(tmp_path / Evaluation.SAMPLES)
    assert list(found) == list(VARIANTS)
    for name, variant in VARIANTS.items():
        ((_, values),) = found[name].items()
        whole = [variant_metrics(variant, answers["reference"], run) for run in answers["shape_channels"]]
        # Counts of splits are exact: there is nothing to round.
        same = values["mean"] == pytest.approx({key: np.mean([w[key] for w in whole]) for key in ("ws", "mae")})
        assert same == (variant.rounded or kind == "splits")
    table = (tmp_path / Evaluation.TABLES).read_text(encoding="utf-8")
    assert "| as public codes compute it | WS zdc | MAE zdc |" in table
    assert "ws of zdc,all" in (tmp_path / Evaluation.NUMBERS).read_text(encoding="utf-8")


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="unknown variant 'x'; expected some of zdc, zdc-fast-simulations"):
        Protocol(variants=["x"])
