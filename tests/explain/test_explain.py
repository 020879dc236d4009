"""The command explains both stages, writes what it says, and refuses in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from calosim.explain.shap import NAMES
from calosim.io import read_csv
from calosim.options import METHODS, MIN_SURROGATE_ROWS

#: Rounding of networks in single precision, relative.
SINGLE = 1e-4
SMALL = ["--rows", 4, "--background", 5, "--posterior", 2, "--uncertainty_rows", 30, "--quiet", "true"]


def test_the_command_explains_both_stages(run_folders, command, tmp_path, capsys):
    models = ["--photons", run_folders["photons"], "--shower", run_folders["teacher"]]
    few = ["--surrogate_rows", 150, "--surrogate_epochs", 2, "--compare_rows", 1, "--gradients", 5]
    assert command("explain", *models, *SMALL, *few, "--out", tmp_path / "both") == 0
    assert command("explain", *models[:2], *SMALL, "--compare_rows", 0, "--out", tmp_path / "one") == 0
    assert "Surrogates" in capsys.readouterr().out
    targets = {"photon_sum", "center_x", "center_y"}
    record = json.loads((tmp_path / "both" / "explain.json").read_text())
    assert record["data"]["data_hash"]
    assert record["arguments"]["seed"] == 1
    assert set(record["surrogates"]) == {"x", "y"}
    assert set(record["targets"]) == targets
    assert set(record["explainers"]) == set(METHODS)
    arrays = np.load(tmp_path / "both" / "shap.npz")
    table = read_csv(tmp_path / "both" / "shap.csv")
    for target in targets:
        values = arrays[f"{target}_values"]
        # An ensemble answers with all of its networks.
        assert values.shape == (4, 9, 3 if target == "photon_sum" else 2)
        gap = arrays[f"{target}_predictions"] - arrays[f"{target}_base"]
        assert values.sum(1) == pytest.approx(gap, abs=SINGLE * np.abs(arrays[f"{target}_predictions"]).max())
        of_target = [row for row in table if row["target"] == target]
        assert sorted(row["feature"] for row in of_target) == sorted(NAMES)
        sizes = [float(row["mean_abs_shap"]) for row in of_target]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes == pytest.approx(np.sort(np.abs(values.mean(2)).mean(0))[::-1])
        for kind in ("beeswarm", "bar"):
            assert (tmp_path / "both" / f"{target}_{kind}.png").stat().st_size > 1000
    # Neither the surrogates nor a repetition change what the photon sum's explanation is.
    assert np.array_equal(np.load(tmp_path / "one" / "shap.npz")["photon_sum_values"], arrays["photon_sum_values"])
    uncertainty = json.loads((tmp_path / "one" / "photon_uncertainty.json").read_text())
    assert {"all", "gamma", "neutron"} <= set(uncertainty)
    shares = list(uncertainty["all"]["coverage"].values())
    assert shares == sorted(shares)
    by_row = np.load(tmp_path / "one" / "photon_uncertainty.npz")
    limits = [by_row[key] for key in ("low_95", "low_68", "median", "high_68", "high_95")]
    assert (np.diff(limits, axis=0) >= 0).all()
    assert len(by_row["observed"]) == uncertainty["all"]["rows"]
    assert (tmp_path / "one" / "photon_uncertainty.png").stat().st_size > 1000
    assert not list(tmp_path.rglob(".*"))


def test_one_particle_alone(run_folders, command, tmp_path):
    words = ["--photons", run_folders["photons"], "--particle", "gamma", *SMALL, "--compare_rows", 0, "--out", tmp_path]
    assert command("explain", *words) == 0
    assert set(json.loads((tmp_path / "photon_uncertainty.json").read_text())) == {"all", "gamma"}
    features = {
        f["feature"]: f
        for f in json.loads((tmp_path / "explain.json").read_text())["targets"]["photon_sum"]["features"]
    }
    # All photons are alike in these.
    assert features["mass"]["mean_abs_shap"] == features["charge"]["mean_abs_shap"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to explain"),
        (["--photons", "{tmp}"], "expected a checkpoint or a run folder"),
        (["--photons", "{teacher}"], "expected a checkpoint of PhotonSum, got one of Teacher"),
        (["--photons", "{photons}", "--shower", "{photons}"], "expected a checkpoint of ShowerModel"),
        (["--shower", "{teacher}"], "holds no photon-sum model"),
        (["--photons", "{photons}", "--particle", "xyz"], "unknown particle 'xyz'"),
        (["--photons", "{photons}", "--particle", "k0s"], "no k0s row"),
        (["--photons", "{photons}", "--rows", "0"], "expected rows of at least 1"),
        (
            ["--photons", "{photons}", "--shower", "{teacher}", "--surrogate_rows", "40"],
            f"surrogate_rows of at least {MIN_SURROGATE_ROWS}",
        ),
    ],
)
def test_errors_are_one_line(words, said, run_folders, command, tmp_path, capfd):
    capfd.readouterr()
    filled = [w.format(tmp=tmp_path, **run_folders) for w in words]
    assert command("explain", *filled, "--out", tmp_path / "out", "--quiet", "true") == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("calosim: error:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(run_folders, command, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert command("explain", "--photons", run_folders["photons"], "--out", out, "--rows", 10**6) == 2
        assert (
            f"error: {out}: cannot write there ({tmp_path / 'file'} is not a writable folder)" in capfd.readouterr().err
        )
    assert (tmp_path / "file").read_text() == "mine"
