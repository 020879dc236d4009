"""A whole evaluation: what it writes is of the rows it names, says how it was made, and it refuses what it must."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from calosim.evaluation.evaluate import EXAMPLES, _examples, evaluate
from calosim.io import read_json, read_npz
from calosim.options import Evaluate, FloorOptions, Models, Protocol

FEW = Protocol(runs=2, responses=2, rows=40)


@pytest.fixture(scope="module")
def judged(run_folders, tmp_path_factory):
    """The folder of a small evaluation of both models."""
    out = tmp_path_factory.mktemp("judged")
    models = Models(str(run_folders["teacher"]), [str(run_folders["photons"])], "best", ["neutron=1"])
    evaluate(Evaluate(str(out), models, protocol=FEW, quiet=True))
    return out


def test_an_evaluation_says_how_it_was_made(judged, run_folders):
    """Plans compare the options of their steps with these."""
    assert read_json(judged / "evaluation.json")["arguments"] == {
        **{"out": str(judged), "shower": str(run_folders["teacher"]), "photons": [str(run_folders["photons"])]},
        **{"files": None, "data": None, "split": "test", "floor": None, "runs": 2, "responses": 2, "rows": 40},
        **{"rows_of_each": None, "requantization": "best", "requantization_of": ["neutron=1"], "references": True},
        **{"acceptance": None},
        **{
            "seed": 1,
            "resamples": 1000,
            "variants": None,
            "classifier_calochallenge": False,
            "shape_floor": None,
            "device": "auto",
            "devices": 1,
            "classifier": True,
            "classifier_rows": 9000,
            "classifier_seeds": 5,
        },
    }


def test_an_evaluation_is_of_the_rows_it_names(judged, data):
    results, samples = read_json(judged / "evaluation.json"), read_npz(judged / "samples.npz")
    rows = data.showers("test", samples["rows"])
    assert results["rows"] == len(rows) == len(samples["pdg"])
    assert np.array_equal(samples["reference"], rows.geometry.channels(rows.images))
    assert samples["natural"].all()
    assert samples["shape_channels"].shape == samples["chain_channels"].shape == (2, len(rows), 2, 5)
    # With the true photon sums, up to the rounding of some requantizations, the channels add up to them.
    assert np.abs(samples["shape_channels"].sum(-1) / rows.photon_sum[:, None] - 1).mean() < 0.2
    # A floor of one half of the rows cannot be compared row by row.
    assert "trivial_channels" in samples
    assert "floor_channels" not in samples
    assert set(results["images"]["chain"]) == {"mean", "std", "runs", "seconds", "low", "high"}
    assert {path.name for path in judged.iterdir()} == {
        *("evaluation.json", "evaluation.md", "evaluation.csv", "samples.npz", "responses.png", "channels.png")
    }


def test_a_floor_of_halves_is_called_one(judged):
    text = (judged / "evaluation.md").read_text()
    assert "| floor (Monte Carlo, other half of the responses) |" in text
    assert "other seed" not in text


def test_a_single_primary_can_be_judged(run_folders, tmp_path):
    models = Models(str(run_folders["splits"]), [str(run_folders["photons"])])
    evaluate(Evaluate(str(tmp_path), models, protocol=Protocol(runs=1, responses=1, rows=1), quiet=True))
    results = read_json(tmp_path / "evaluation.json")
    assert 1 <= results["rows"] < 10
    assert "nan" not in (tmp_path / "evaluation.md").read_text()
    assert (tmp_path / "channels.png").stat().st_size > 0


def test_exceptions_are_stronger_than_the_best_requantization(judged):
    results = read_json(judged / "evaluation.json")
    best = {name: int(min(found, key=found.get)) for name, found in results["requantization_ws"].items()}
    assert results["requantization"]["2112"] == 1
    assert results["requantization"]["0"] == best["all"]
    assert results["requantization"].get("22", best["all"]) == best.get("gamma", best["all"])


def test_photon_sums_do_not_depend_on_what_else_is_judged(judged, run_folders, tmp_path):
    alone = {"floors": FloorOptions(references=False), "protocol": FEW}
    evaluate(Evaluate(str(tmp_path), Models(photons=[str(run_folders["photons"])]), **alone, quiet=True))
    alone, together = (read_json(folder / "evaluation.json")["photon_sum"] for folder in (tmp_path, judged))
    assert len(alone) == 1
    assert set(together) == {*alone, "halves", "trivial"}
    assert all(together[name] == report for name, report in alone.items())
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "evaluation.md", "evaluation.csv"}


def test_another_simulation_is_a_floor_on_all_rows(judged, run_folders, root_file, tmp_path, monkeypatch):
    """The same file stands for it: every row is answered with a response to its own primary."""
    monkeypatch.setattr("calosim.evaluation.evaluate._draw", lambda *_: [])  # the pictures take longest
    models = Models(str(run_folders["teacher"]))
    evaluate(Evaluate(str(tmp_path), models, floors=FloorOptions(str(root_file)), protocol=FEW, quiet=True))
    results, samples = read_json(tmp_path / "evaluation.json"), read_npz(tmp_path / "samples.npz")
    assert results["floor"] == str(root_file)
    assert results["floor_rows_without_their_primary"] == 0
    assert samples["floor_channels"].shape == (2, results["rows"], 2, 5)
    assert np.array_equal(samples["rows"], read_npz(judged / "samples.npz")["rows"])
    # Without a photon-sum model there is no full chain.
    assert list(results["photon_sum"]) == ["floor", "trivial"]
    assert "chain" not in results["images"]


def test_nothing_to_evaluate_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(Evaluate(str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_examples_do_not_repeat_a_response(showers, all_of):
    """Two responses to one neutron, many to the others: what the Monte Carlo has not is dark, and generated all the same."""
    neutrons = np.flatnonzero(showers.pdg == 2112)
    first = neutrons[showers.primary_ids[neutrons] == showers.primary_ids[neutrons[0]]][:2]
    few = showers.select(np.concatenate([first, np.flatnonzero(showers.pdg == 22)]))
    simulator = SimpleNamespace(photons=object(), sample=lambda particles, *_: np.ones((len(particles), 44, 44), int))
    found = _examples(all_of(few), simulator, seed=0)
    nonempty = found["examples_reference"].any((2, 3))
    gamma, neutron = range(2)
    assert nonempty[neutron].tolist() == [True] * 2 + [False] * (EXAMPLES[1] - 2)
    assert nonempty[gamma].sum() == min(EXAMPLES[1], np.bincount(few.primary_ids[few.pdg == 22]).max())
    assert found["examples_generated"].any((2, 3)).all()
