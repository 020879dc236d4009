"""The command ``explain``: SHAP values of the photon sum and of the shower's center, and how sure the photon sum is.

The explained function is the predictive mean, in photons or cm, of the nine physical features, even where a network
derives further columns from them. A masked primary need not be on its mass shell, and what the networks make of such a
primary decides how energy and :math:`|p_z|`, which are nearly the same number, share what they say together.

References:
    | ZDC Fast Simulation with Normalizing Flows (Majerz and Dzwinel, poster)
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calosim.data.record import FEATURES
from calosim.data.splits import ShowerData
from calosim.evaluation.selection import check_splits, some_rows, trained_data
from calosim.evaluation.sums import draw_uncertainty, photon_uncertainty, uncertainty_table
from calosim.explain.shap import NAMES, compare_explainers, explained, import_shap
from calosim.explain.surrogates import PosteriorMeans, center_surrogates
from calosim.io import atomic_write, check_writable, csv_text, markdown_table, write_json, write_npz
from calosim.models.checkpoints import weights_of
from calosim.models.photon_sum import PhotonSum
from calosim.options import Explain, ShapSettings, SurrogateSettings
from calosim.particles import particle_code, particle_name
from calosim.runs import origin
from calosim.simulation.simulator import FastSimulator

__all__ = ["TARGETS", "explain", "save_explanation", "tables_of"]


def tables_of(results: Mapping[str, Any], report: dict[str, Any]) -> Iterator[str]:
    """The tables of an explanation, each with a paragraph that says what it shows.

    Args:
        results: The content of ``explain.json``.
        report: What :func:`calosim.evaluation.sums.photon_uncertainty` found.
    """
    if "surrogates" in results:
        yield _fits(results["surrogates"])
    yield _ranks(results)
    if "explainers" in results:
        yield _explainers(results["explainers"])
    head, *rows = uncertainty_table(report)
    yield _table(
        "Uncertainty of the photon sum: observed shares inside central predictive intervals, and the parts of its standard "
        "deviation: aleatoric (responses differ) and epistemic (networks of the posterior differ).",
        head,
        *rows,
    )


def _fits(surrogates: Mapping[str, Mapping[str, Any]]) -> str:
    keys = {
        "r2": "R²",
        "ceiling": "largest possible R²",
        "residual_mean": "residual mean, cm",
        "residual_std": "residual std, cm",
        "std": "values' std, cm",
    }
    return _table(
        "Surrogates of the shower center on primaries they have not seen; an explanation is worth their fit. "
        "No function of the primary can explain more than the share of the variance that lies between primaries.",
        ["center", *keys.values(), "rows", "primaries"],
        *(
            [axis, *("–" if f[k] is None else f"{f[k]:.3f}" for k in keys), str(f["rows"]), str(f["primaries"])]
            for axis, f in surrogates.items()
        ),
    )


def _ranks(results: Mapping[str, Any]) -> str:
    targets = results["targets"]
    columns = [
        [f"{f['feature']} {_with_error(f['mean_abs_shap'], f['posterior_std'])}" for f in target["features"]]
        for target in targets.values()
    ]
    return _table(
        f"Mean absolute SHAP value over {results['rows']} test rows ({results['particle']}), {results['background']} "
        f"background rows; ± standard deviation over networks ({results['posterior']} of a Bayesian posterior, or the "
        f"ensemble's); explainer: {results['method']}.",
        ["rank", *(f"{key.replace('_', ' ')}, {target['unit']}" for key, target in targets.items())],
        *([str(rank), *cells] for rank, cells in enumerate(zip(*columns, strict=True), 1)),
    )


def _explainers(explainers: Mapping[str, Mapping[str, Any]]) -> str:
    forms = {"seconds": ".3f", "evaluations": ".0f", "deviation": ".1%", "efficiency": ".3g"}
    heading = ["explainer", "seconds a row", "evaluations a row", "deviation", "sum of a row off by, photons"]
    return _table(
        "Explainers of the photon sum on the same rows; deviation is relative to the exact values.",
        [*heading, "features in place"],
        *(
            [name, *(f"{e[k]:{form}}" for k, form in forms.items()), f"{e['same_order']} of {len(NAMES)}"]
            for name, e in explainers.items()
        ),
    )


def _table(words: str, head: list[str], *rows: list[str]) -> str:
    """A paragraph and a Markdown table."""
    return f"{words}\n\n{markdown_table(head, rows)}"


def _with_error(value: float, error: float) -> str:
    """Both with the decimals that leave the error two digits."""
    decimals = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


#: What can be explained: its name and its unit.
TARGETS = {
    "photon_sum": ("photon sum", "photons"),
    "center_x": ("shower center x", "cm"),
    "center_y": ("shower center y", "cm"),
}


def save_explanation(
    folder: Path,
    results: dict[str, Any],
    stored: dict[str, np.ndarray],
    report: dict[str, Any],
    by_row: dict[str, np.ndarray],
) -> None:
    """Writes all files, each whole or not there, ``explain.json`` being the last; prints the tables.

    Args:
        folder: The folder; made if missing.
        results: The content of ``explain.json``.
        stored: The content of ``shap.npz``: ``features`` (N, 9), and by target SHAP values (N, 9, K), bases (K,) and
            predictions (N, K), in photons or cm.
        report: What :func:`calosim.evaluation.sums.photon_uncertainty` found, by particle type.
        by_row: And by row.
    """
    write_npz(folder / "shap.npz", **stored)
    ranks = [
        [key, results["particle"], target["unit"], *feature.values()]
        for key, target in results["targets"].items()
        for feature in target["features"]
    ]
    columns = next(iter(results["targets"].values()))["features"][0]
    atomic_write(folder / "shap.csv", csv_text(["target", "particle", "unit", *columns], ranks))
    quantities = [
        [name, quantity, nominal, value]
        for name, values in report.items()
        for quantity, of in values.items()
        for nominal, value in (of.items() if isinstance(of, dict) else [("", of)])
    ]
    write_npz(folder / "photon_uncertainty.npz", **by_row)
    header = ["particle", "quantity", "nominal", "value"]
    atomic_write(folder / "photon_uncertainty.csv", csv_text(header, quantities))
    write_json(folder / "photon_uncertainty.json", report)
    _draw_targets(folder, results["targets"], stored)
    draw_uncertainty(report, by_row, folder / "photon_uncertainty.png")
    text = "\n\n".join(tables_of(results, report)) + "\n"
    atomic_write(folder / "explain.md", text)
    write_json(folder / "explain.json", results)
    print(text)
    print(f"Results: {folder}/explain.md, .json, shap.csv, .npz, photon_uncertainty.json, .csv, .npz and pictures")


def _draw_targets(folder: Path, targets: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> None:
    """Two pictures of each target, the most important feature on top."""
    from calosim.plots import beeswarm, importances

    for key, target in targets.items():
        label = "SHAP value of the {}, {}".format(*TARGETS[key])
        names = [feature["feature"] for feature in target["features"]]
        lengths, errors = (np.array([f[k] for f in target["features"]]) for k in ("mean_abs_shap", "posterior_std"))
        order = [NAMES.index(name) for name in names]
        values = stored[f"{key}_values"].mean(2)[:, order]
        beeswarm(values, stored["features"][:, order], names, label, folder / f"{key}_beeswarm.png")
        importances(lengths, errors, names, f"mean absolute {label}", folder / f"{key}_bar.png")


def explain(options: Explain) -> None:
    """Explains the photon sum and the shower's center by the primary's features (SHAP), and how sure the photon sum is.

    Raises:
        ValueError: If the models, the data or the settings do not fit together, or shap is not installed.
    """
    photons, shower, settings, surrogates = options.photons, options.shower, options.settings, options.surrogates
    uncertainty_rows, quiet = options.uncertainty_rows, options.quiet
    arguments = {key: value for key, value in vars(options).items() if key not in ("settings", "surrogates", "quiet")}
    if uncertainty_rows < 2:
        raise ValueError(f"expected uncertainty_rows of at least 2, got {uncertainty_rows}")
    # What takes minutes comes after all that can be refused at once.
    folder = Path(options.out)
    check_writable(folder)
    simulator, model = _models(photons, shower, settings.posterior, surrogates.devices)
    primaries = _Primaries.of(photons, shower, options.particle, options.files, options.data)
    chosen = primaries.rows("test", settings.rows)
    features = primaries.features(chosen)
    background = primaries.features(primaries.rows("train", settings.background))
    import_shap()
    functions, fits = _functions(simulator, model, primaries, settings, surrogates, quiet)
    values, targets = _attributions(functions, features, background, settings, quiet)
    results: dict[str, Any] = {
        **origin(arguments=arguments | asdict(settings) | asdict(surrogates)),
        "weights": weights_of((shower, photons), folder),
        **{"data": primaries.data.describe(), "particle": primaries.name, "rows": len(features)},
        **{"background": len(background), "posterior": settings.posterior, "method": settings.method},
        **({"surrogates": fits} if fits else {}),
        "targets": targets,
    }
    if settings.compare_rows:
        results["explainers"] = compare_explainers(functions["photon_sum"], features, background, settings, quiet)
    judged = primaries.rows("test", uncertainty_rows, 5)
    rows = {"features": features, "background": background, "rows": chosen, "names": np.array(NAMES)}
    save_explanation(folder, results, rows | values, *photon_uncertainty(model, primaries.data, judged, settings.seed))


def _models(
    photons: str | None, shower: str | None, posterior: int, devices: int
) -> tuple[FastSimulator | None, PhotonSum]:
    """The simulation, if there is a shower model, and the photon-sum model with its number of networks to draw."""
    simulator: FastSimulator | None = None
    if shower:
        simulator = FastSimulator.load(shower, photons, devices=devices)
        if simulator.photons is None:
            raise ValueError(f"{shower}: holds no photon-sum model; name one with --photons")
        # Of a copy: the simulation keeps its own number of networks.
        model = copy.deepcopy(simulator.photons)
    elif photons:
        model = PhotonSum.load(photons)
    else:
        raise ValueError("nothing to explain: name a photon-sum model with --photons or a shower model with --shower")
    model.members = posterior
    return simulator, model


@dataclass(frozen=True)
class _Primaries:
    """The data that the models were trained with, and the PDG code of the only particle type to explain, if so."""

    data: ShowerData
    code: int | None

    @classmethod
    def of(
        cls,
        photons: str | None,
        shower: str | None,
        particle: str | int | None,
        files: list[str] | None,
        data: str | None,
    ) -> _Primaries:
        """See the arguments of :func:`explain`; refuses models that have seen the rows or know another particle."""
        code = None if particle is None else particle_code(particle)
        judge = data or photons or str(shower)
        source, own = trained_data(judge, files, shower or photons)
        check_splits(judge, [model for model in (shower, photons) if model], data is not None)
        if own is not None and code not in (None, own):
            raise ValueError(
                f"{shower or photons}: trained with {particle_name(own)} alone; expected that, got {particle}"
            )
        return cls(source, own if code is None else code)

    @property
    def name(self) -> str:
        """The particle type's name."""
        return "all" if self.code is None else particle_name(self.code)

    def rows(self, split: Literal["train", "test"], count: int, together: int = 1) -> np.ndarray:
        """Row numbers of some rows of a split, see :func:`calosim.evaluation.selection.some_rows`."""
        rows, pdg = self.data.rows(split), self.data.arrays["pdg"]
        rows = rows if self.code is None else rows[pdg[rows] == self.code]
        if not len(rows):
            what = "row" if self.code is None else f"{self.name} row"
            raise ValueError(f"{', '.join(self.data.files)}: the {split} split has no {what} to explain")
        return rows[some_rows(self.data.arrays["primary_ids"][rows], pdg[rows], count, together)]

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Features (N, 9) with the absolute value of pz, which is all that the networks see of it, float64.

        With its sign, the straight path of ``gradient`` from one side's primaries to the other's would pass through zero.
        """
        features = self.data.arrays["particles"][rows].astype(np.float64)
        features[:, FEATURES.index("pz")] = np.abs(features[:, FEATURES.index("pz")])
        return features


def _functions(
    simulator: FastSimulator | None,
    model: PhotonSum,
    primaries: _Primaries,
    settings: ShapSettings,
    surrogates: SurrogateSettings,
    quiet: bool,
) -> tuple[dict[str, PosteriorMeans], dict[str, Any]]:
    """What is explained, by target, and by axis how well its surrogate fits; none without a shower model."""
    functions = {"photon_sum": PosteriorMeans(model, settings.seed)}
    if simulator is None:
        return functions, {}
    count = surrogates.surrogate_rows
    rows = primaries.rows("train", count), primaries.rows("test", -(-count // 4), 5)
    how = surrogates.surrogate_epochs, settings.posterior, settings.seed, quiet
    fitted = center_surrogates(simulator, primaries.data, rows, *how)
    functions |= {f"center_{axis}": function for axis, (function, _) in fitted.items()}
    return functions, {axis: fit for axis, (_, fit) in fitted.items()}


def _attributions(
    functions: dict[str, PosteriorMeans],
    features: np.ndarray,
    background: np.ndarray,
    settings: ShapSettings,
    quiet: bool,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """SHAP values of all targets as arrays, and by target what they say in short."""
    stored: dict[str, np.ndarray] = {}
    targets = {}
    for key, function in functions.items():
        name, unit = TARGETS[key]
        found, short = explained(function, features, background, settings, quiet, f"SHAP of the {name}")
        stored |= {f"{key}_{what}": array for what, array in found.items()}
        targets[key] = {"unit": unit, **short}
    return stored, targets
