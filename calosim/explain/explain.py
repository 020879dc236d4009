r"""Which features decide the photon sum and the shower's center: SHAP values of Bayesian networks.

The photon-sum network is explained directly. A flow is too slow for the thousands of evaluations that an explanation
takes, so small Bayesian networks learn the center of gravity of the responses that the whole simulation generates, and
those surrogates are explained, after it was said how well they fit.

The explained function is the predictive mean, in photons or cm, of the nine physical features, even where a network
derives further columns from them. Networks drawn from the posterior are explained together,

.. math:: \phi_j = \frac{1}{K} \sum_{k=1}^{K} \phi_j^{(k)},

which are the SHAP values of the mean over the posterior, SHAP values being linear in the function; their spread over
:math:`k` says how sure the network is of an explanation. Features are masked by background rows, one feature
independently of another. A masked primary need not be on its mass shell, and what the networks make of such a primary
decides how energy and :math:`|p_z|`, which are nearly the same number, share what they say together.

References:
    | A Unified Approach to Interpreting Model Predictions (Lundberg and Lee, 2017), https://arxiv.org/abs/1705.07874
    | ZDC Fast Simulation with Normalizing Flows (Majerz and Dzwinel, poster)
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calosim import __version__
from calosim.evaluation.photons import photon_uncertainty
from calosim.evaluation.selection import check_splits, some_rows, trained_data
from calosim.explain.shap import NAMES, Method, compare_explainers, explained, import_shap
from calosim.explain.surrogates import (
    MIN_SURROGATE_ROWS,
    PosteriorMeans,
    fit_surrogate,
    generated_centers,
    surrogate_fit,
)
from calosim.explain.tables import TARGETS, write_explanation
from calosim.files import check_writable
from calosim.models.photons import PhotonSum
from calosim.particles import particle_code, particle_name
from calosim.runs import git_hash
from calosim.showers.datamodule import RootDataModule, describe
from calosim.showers.record import FEATURES
from calosim.simulation.simulator import FastSimulator

__all__ = ["explain"]


def explain(
    out: str,
    photons: str | None = None,
    shape: str | None = None,
    particle: str | int | None = None,
    files: list[str] | None = None,
    data: str | None = None,
    method: Method = "exact",
    rows: int = 100,
    background: int = 40,
    posterior: int = 8,
    permutations: int = 2,
    gradients: int = 200,
    compare_rows: int = 4,
    surrogate_rows: int = 2000,
    surrogate_epochs: int = 60,
    uncertainty_rows: int = 2000,
    seed: int = 1,
    quiet: bool = False,
) -> None:
    """Explains the photon sum and the shower's center by the primary's features (SHAP), and how sure the photon sum is.

    Writes explain.md and explain.json, shap.csv and shap.npz, photon_uncertainty.json, .csv and .npz (by row), and
    pictures. Rows are of the test split of the data the models were trained with, background rows of its training split.

    The explainer is exact by default: nine features have 512 subsets, and enumerating them costs little more than sampling
    them well. On one core (3 x 128 hidden, 8 networks, 40 background rows) exact took 0.27 s a row; permutation 0.05 s with
    2 orders, 16 to 20 % off, and 0.14 s with 8, 8 % off; gradient 0.36 s with 200 points, 46 % off: sharp edges, a beam slit
    or the calorimeter's rim, make interactions of many features, which the others miss. compare_rows measures it anew.

    Args:
        out: Folder for the results.
        photons: Run folder or checkpoint of the photon-sum model; the ensemble's, if ``shape`` is one that holds it.
        shape: Run folder, checkpoint or ensemble of the shape model. Surrogates of the x and y of the shower's center are
            trained on what it generates; without it only the photon sum is explained.
        particle: Explain this particle type alone; all types in their natural mix if not given.
        files: Data files, if they are no longer where the models were trained.
        data: Run folder whose data set and split are used; that of the photon-sum model if not given.
        method: exact, permutation or gradient, see above.
        rows: Test rows to explain.
        background: Training rows that stand for masked features.
        posterior: Networks drawn from each posterior.
        permutations: Orders in which "permutation" unmasks the features, each forth and back.
        gradients: Points at which "gradient" differentiates for each row.
        compare_rows: Rows on which all explainers are run and compared; 0 skips that.
        surrogate_rows: Responses generated for the surrogates; a quarter as many, of test primaries, judge them.
        surrogate_epochs: Passes over those responses.
        uncertainty_rows: Test rows whose predictive intervals are held against the observed photon sums.
        seed: Seed of all draws.
        quiet: Show no progress.
    """
    arguments = {key: value for key, value in locals().items() if key != "quiet"}
    least = {"seed": 0, "compare_rows": 0, "background": 2, "uncertainty_rows": 2, "surrogate_rows": MIN_SURROGATE_ROWS}
    for name, value in arguments.items():
        lowest = least.get(name, 1)
        if isinstance(value, int) and name != "particle" and value < lowest:
            raise ValueError(f"expected {name} of at least {lowest}, got {value}")
    # What takes minutes comes after all that can be refused at once.
    folder = Path(out)
    check_writable(folder)
    code = None if particle is None else particle_code(particle)
    simulator: FastSimulator | None = None
    if shape:
        simulator = FastSimulator.load(shape, photons)
        if simulator.photons is None:
            raise ValueError(f"{shape}: holds no photon-sum model; name one with --photons")
        # Of a copy: the simulation keeps its own number of networks.
        model = copy.deepcopy(simulator.photons)
    elif photons:
        model = PhotonSum.load(photons)
    else:
        raise ValueError("nothing to explain: name a photon-sum model with --photons or a shape model with --shape")
    model.posterior_samples = posterior
    source, own = trained_data(data or photons or str(shape), files, shape or photons)
    check_splits(data or photons or str(shape), [m for m in (shape, photons) if m], data is not None)
    if own is not None and code not in (None, own):
        raise ValueError(f"{shape or photons}: trained with {particle_name(own)} alone; expected that, got {particle}")
    code = own if code is None else code
    train, test = (partial(_rows, source, split, code) for split in ("train", "test"))
    chosen = test(rows)
    features, masked = _features(source, chosen), _features(source, train(background))
    import_shap()
    settings: dict[str, Any] = {"permutations": permutations, "gradients": gradients, "seed": seed, "quiet": quiet}
    results: dict[str, Any] = {
        **{"calosim": __version__, "git": git_hash(), "arguments": arguments, "data": describe(source)},
        **{"particle": "all" if code is None else particle_name(code), "rows": len(features)},
        **{"background": len(masked), "posterior": posterior, "method": method},
    }
    functions = {"photon_sum": PosteriorMeans(model, seed)}
    if simulator is not None:
        results["surrogates"] = {}
        arrays, learned, held = source.arrays, train(surrogate_rows), test(-(-surrogate_rows // 4), 5)
        # A split by response leaves primaries in both splits.
        held = held[~np.isin(arrays["inputs"][held], arrays["inputs"][learned])]
        if len(held) < 2:
            raise ValueError(
                "expected test responses to primaries that the surrogates have not seen, got none; lower surrogate_rows"
            )
        centers = generated_centers(simulator, source, learned, seed, quiet)
        truth = generated_centers(simulator, source, held, seed, quiet)
        for i, axis in enumerate("xy"):
            learn = source.detector.name, arrays["particles"][learned], centers[:, i]
            surrogate = fit_surrogate(*learn, posterior, surrogate_epochs, seed + i, quiet)
            function = functions[f"center_{axis}"] = PosteriorMeans(surrogate, seed)
            judge = arrays["particles"][held], truth[:, i], arrays["inputs"][held]
            results["surrogates"][axis] = surrogate_fit(function, *judge)
    stored = {"features": features, "background": masked, "rows": chosen, "names": np.array(NAMES)}
    results["targets"] = {}
    for key, function in functions.items():
        name, unit = TARGETS[key]
        found, short = explained(function, features, masked, method=method, title=f"SHAP of the {name}", **settings)
        stored |= {f"{key}_{what}": array for what, array in found.items()}
        results["targets"][key] = {"unit": unit, **short}
    if compare_rows:
        some = features[:: max(1, len(features) // compare_rows)][:compare_rows]
        results["explainers"] = compare_explainers(functions["photon_sum"], some, masked, **settings)
    report, by_row = photon_uncertainty(model, source, test(uncertainty_rows, 5), seed)
    write_explanation(folder, results, stored, report, by_row)


def _rows(data: RootDataModule, split: Any, code: int | None, count: int, together: int = 1) -> np.ndarray:
    """Row numbers of some rows of a split, of one particle type or of all, see :func:`calosim.evaluation.selection.some_rows`."""
    rows, pdg = data.rows(split), data.arrays["pdg"]
    rows = rows if code is None else rows[pdg[rows] == code]
    if not len(rows):
        what = "row" if code is None else f"{particle_name(code)} row"
        raise ValueError(f"{', '.join(data.files)}: the {split} split has no {what} to explain")
    return rows[some_rows(data.arrays["inputs"][rows], pdg[rows], count, together)]


def _features(data: RootDataModule, rows: np.ndarray) -> np.ndarray:
    """Features with the absolute value of pz, which is all that the networks see of it, float64.

    With its sign, the straight path of ``gradient`` from one side's primaries to the other's would pass through zero.
    """
    features = data.arrays["particles"][rows].astype(np.float64)
    features[:, FEATURES.index("pz")] = np.abs(features[:, FEATURES.index("pz")])
    return features
