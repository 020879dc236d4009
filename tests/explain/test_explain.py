"""Explanations: planted functions get the attributions they must, and surrogates learn what can be learned."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from calosim.__main__ import main
from calosim.explain.shap import METHODS, NAMES, predict, shap_values
from calosim.explain.surrogates import MIN_SURROGATE_ROWS, PosteriorMeans, fit_surrogate, surrogate_fit
from calosim.models.photons import MIN_SCALE, PhotonSum

CONF = Path(__file__).resolve().parents[2] / "conf"
#: Rounding of what masks features one after another, relative to values of about 1.
EXACT = 1e-9
#: Rounding of networks in single precision, relative.
SINGLE = 1e-4
#: Standard deviations that a mean of draws may lie off its expectation.
SIGMAS = 5.0
#: Points of expected gradients, whose values are means over random background rows.
POINTS = 800


class Planted(nn.Module):
    """Two outputs: one linear, one with an interaction of the first two features; the last feature is not used."""

    weights = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x @ self.weights, 3 * x[:, 0] * x[:, 1] + x[:, 2]], dim=1)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Rows to explain (5, 4) and a background (20, 4) of scales as far apart as those of the primaries."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 4)), rng.normal(0.3, 1.0, size=(20, 4))


def explained(rows, method, seed=0, scale=1.0):
    class Scaled(Planted):
        def forward(self, x):
            return super().forward(x / torch.as_tensor(scale))

    return shap_values(Scaled(), rows[0] * scale, rows[1] * scale, method, gradients=POINTS, seed=seed)[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_function_is_coefficient_times_distance(rows, method):
    values = explained(rows, method)[:, :, 0]
    truth = Planted.weights.numpy() * (rows[0] - rows[1].mean(0))
    # Expected gradients draw background rows instead of going through all.
    noise = SIGMAS * np.abs(Planted.weights.numpy()) * rows[1].std(0) / np.sqrt(POINTS) if method == "gradient" else 0
    assert np.all(np.abs(values - truth) <= noise + EXACT + (method == "gradient") * 1e-6)


@pytest.mark.parametrize("method", ["permutation", "exact"])
def test_values_sum_to_prediction_minus_expectation(rows, method):
    values = explained(rows, method)
    with torch.no_grad():
        at, base = (Planted()(torch.from_numpy(r)).numpy() for r in rows)
    assert values.sum(1) == pytest.approx(at - base.mean(0), abs=EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_an_unused_feature_gets_nothing(rows, method):
    values = explained(rows, method)
    assert np.abs(values[:, 3]).max() < EXACT
    assert np.abs(values[:, :2]).min() > EXACT


def test_an_interaction_is_shared_as_shapley_says(rows):
    values = explained(rows, "exact")[:, :, 1]
    x, b = rows[0][:, None], rows[1]
    # Mean over both orders and the background of how much unmasking the first feature changes 3 x0 x1.
    first = 1.5 * ((x[..., 0] - b[:, 0]) * (x[..., 1] + b[:, 1])).mean(1)
    assert values[:, 0] == pytest.approx(first, abs=EXACT)
    # Pairs are exact in one order forth and back.
    assert explained(rows, "permutation")[:, :, 1] == pytest.approx(values, abs=EXACT)


def test_units_do_not_matter(rows):
    assert explained(rows, "exact", scale=np.array([1e-7, 1.0, 1e6, 1.0])) == pytest.approx(
        explained(rows, "exact"), abs=1e-6
    )


def test_one_seed_gives_the_same_bits_and_leaves_numpy_alone(rows):
    class Cube(nn.Module):
        def forward(self, x):
            return (x[:, 0] * x[:, 1] * x[:, 2])[:, None]

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two, other = (shap_values(Cube(), *rows, "permutation", permutations=1, seed=seed)[0] for seed in (1, 1, 2))
    gradients = [explained(rows, "gradient", seed) for seed in (1, 1)]
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert np.array_equal(one, two)
    assert np.array_equal(*gradients)
    assert not np.array_equal(one, other)


def test_an_unknown_explainer_is_refused(rows):
    with pytest.raises(ValueError, match="unknown explainer 'tree'"):
        shap_values(Planted(), *rows, "tree")


# -- the photon sum ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["mixture", "gaussian"])
def model(request, showers) -> PhotonSum:
    """An untrained model with standardizations, of a posterior wide enough to matter."""
    torch.manual_seed(1)
    model = PhotonSum("zn", head=request.param, hidden=(8,), components=3, posterior_samples=4)
    model.features.fit(torch.from_numpy(showers.particles))
    values = torch.from_numpy(showers.photon_sum).double()
    target = values.log() if request.param == "mixture" else values
    model.center.fill_(target.mean())
    model.spread.fill_(target.std())
    model.lower.fill_(values.min())
    model.upper.fill_(values.max())
    for logvar in model.bayes.logvars.values():
        torch.nn.init.constant_(logvar, -3.0)
    return model.eval()


def test_explained_means_are_those_moments(model, showers):
    particles = showers.particles[:3]
    means = predict(PosteriorMeans(model, seed=2), particles)
    columns = model.features(torch.from_numpy(particles)).double()
    for k, network in enumerate(model.networks(2)):
        with torch.no_grad():
            assert means[:, k] == pytest.approx(model.moment(network(columns)).numpy(), rel=SINGLE)
    # The sign of pz tells only the side; the explained function does not see it.
    flipped = particles * np.where(np.arange(9) == 6, -1.0, 1.0)
    assert np.array_equal(predict(PosteriorMeans(model, seed=2), flipped), means)


# -- surrogates --------------------------------------------------------------------------------------------------------


def test_a_surrogate_learns_a_planted_center():
    rng = np.random.default_rng(5)
    particles = np.zeros((900, 9))
    particles[:, 0] = particles[:, 6] = rng.uniform(500, 3000, 900)
    particles[:, 4:6] = rng.normal(0, 0.1, (900, 2))
    spot = 2 * np.tanh(11000 * particles[:, 4] / particles[:, 6])
    values = spot + rng.normal(0, 0.3, 900)
    values[::50] = np.nan
    torch_state, train, test = torch.random.get_rng_state(), slice(0, 600), np.repeat(np.arange(600, 900), 3)
    surrogate, again = (fit_surrogate("zn", particles[train], values[train], 3, epochs=30, seed=s) for s in (0, 0))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert all(torch.equal(a, b) for a, b in zip(surrogate.parameters(), again.parameters(), strict=True))
    function = PosteriorMeans(surrogate)
    outputs = torch.tensor([[0.0, 0.0], [-3.0, 1.0]], dtype=torch.float64)
    mean, width = (
        outputs[:, 0] * surrogate.spread + surrogate.center,
        surrogate.spread * (MIN_SCALE + outputs[:, 1].exp()),
    )
    torch.testing.assert_close(surrogate.moment(outputs), mean)
    torch.testing.assert_close(surrogate.moment(outputs, 2) - mean.square(), width.square())
    fit = surrogate_fit(function, particles[test], spot[test] + rng.normal(0, 0.3, len(test)), test)
    truth = 1 - 0.3**2 / (np.var(spot[600:]) + 0.3**2)
    assert fit["ceiling"] == pytest.approx(truth, abs=0.02)
    assert truth - 0.1 < fit["r2"] < truth + 0.02
    assert abs(fit["residual_mean"]) < 0.1
    assert (fit["rows"], fit["primaries"], fit["dark"]) == (900, 300, 0)
    importance = np.abs(shap_values(function, particles[600:610], particles[:10])[0].mean(2)).mean(0)
    assert NAMES[importance.argmax()] == "px"
    assert importance[5] < 0.2 * importance[4]
    # Constant features.
    assert importance[[1, 2, 3, 7, 8]].max() == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.append(np.arange(MIN_SURROGATE_ROWS - 1.0), np.nan), f"at least {MIN_SURROGATE_ROWS} generated responses"),
        (np.zeros(MIN_SURROGATE_ROWS), "centers that differ"),
    ],
)
def test_a_surrogate_refuses_what_cannot_be_fitted(values, said):
    with pytest.raises(ValueError, match=said):
        fit_surrogate("zn", np.ones((len(values), 9)), values)


# -- the command -------------------------------------------------------------------------------------------------------


def run(*words: object) -> int:
    return main([str(w) for w in words])


@pytest.fixture(scope="module")
def runs(root_file, tmp_path_factory) -> Path:
    """Run folders ``teacher`` and ``photons``, trained by the command for one epoch."""
    folder = tmp_path_factory.mktemp("explain")
    common = ["--data.files", root_file, "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false"]
    common += ["--trainer.enable_model_summary", "false", "--data.batch_size", 64]
    teacher = ["--model.hidden", "[8,8]", "--model.transforms", 1, "--trainer.callbacks.rows", 4]
    assert run("fit", "-c", CONF / "teacher.yaml", *common, *teacher, "--run", folder / "teacher") == 0
    photons = ["--model.hidden", "[8]", "--model.components", 2, "--run", folder / "photons"]
    assert run("fit", "-c", CONF / "photons.yaml", *common, *photons) == 0
    return folder


SMALL = ["--rows", 4, "--background", 5, "--posterior", 2, "--uncertainty_rows", 30, "--quiet", "true"]


def test_the_command_explains_both_stages(runs, tmp_path, capsys):
    models = ["--photons", runs / "photons", "--shape", runs / "teacher"]
    few = ["--surrogate_rows", 150, "--surrogate_epochs", 2, "--compare_rows", 1, "--gradients", 5]
    assert run("explain", *models, *SMALL, *few, "--out", tmp_path / "both") == 0
    assert run("explain", *models[:2], *SMALL, "--compare_rows", 0, "--out", tmp_path / "one") == 0
    assert "Surrogates" in capsys.readouterr().out
    targets = {"photon_sum", "center_x", "center_y"}
    record = json.loads((tmp_path / "both" / "explain.json").read_text())
    assert record["data"]["data_hash"]
    assert record["arguments"]["seed"] == 1
    assert set(record["surrogates"]) == {"x", "y"}
    assert set(record["targets"]) == targets
    assert set(record["explainers"]) == set(METHODS)
    arrays = np.load(tmp_path / "both" / "shap.npz")
    table = list(csv.DictReader((tmp_path / "both" / "shap.csv").read_text().splitlines()))
    for target in targets:
        values = arrays[f"{target}_values"]
        assert values.shape == (4, 9, 2)
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


def test_one_particle_alone(runs, tmp_path):
    words = ["--photons", runs / "photons", "--particle", "gamma", *SMALL, "--compare_rows", 0, "--out", tmp_path]
    assert run("explain", *words) == 0
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
        (["--photons", "{runs}"], "expected a checkpoint or a run folder"),
        (["--photons", "{runs}/teacher"], "expected a checkpoint of PhotonSum, got one of Teacher"),
        (["--photons", "{runs}/photons", "--shape", "{runs}/photons"], "expected a checkpoint of ShapeModule"),
        (["--shape", "{runs}/teacher"], "holds no photon-sum model"),
        (["--photons", "{runs}/photons", "--particle", "xyz"], "unknown particle 'xyz'"),
        (["--photons", "{runs}/photons", "--particle", "k0s"], "no k0s row"),
        (["--photons", "{runs}/photons", "--rows", "0"], "expected rows of at least 1"),
        (
            ["--photons", "{runs}/photons", "--shape", "{runs}/teacher", "--surrogate_rows", "40"],
            f"surrogate_rows of at least {MIN_SURROGATE_ROWS}",
        ),
    ],
)
def test_errors_are_one_line(words, said, runs, tmp_path, capfd):
    capfd.readouterr()
    filled = [w.format(runs=runs) for w in words]
    assert run("explain", *filled, "--out", tmp_path / "out", "--quiet", "true") == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("calosim: error:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(runs, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert run("explain", "--photons", runs / "photons", "--out", out, "--rows", 10**6) == 2
        assert (
            f"error: {out}: cannot write there ({tmp_path / 'file'} is not a writable folder)" in capfd.readouterr().err
        )
    assert (tmp_path / "file").read_text() == "mine"
