r"""The command ``explain``: SHAP values of the photon sum and of the shower's center, and how sure the photon sum is.

The explained function is the predictive mean, in photons or cm, of the nine physical features, even where a network
derives further columns from them. A masked primary need not be on its mass shell, and what the networks make of such a
primary decides how energy and :math:`|p_z|`, which are nearly the same number, share what they say together.

References:
    | ZDC Fast Simulation with Normalizing Flows (Majerz and Dzwinel, poster)
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calosim import __version__
from calosim.data.datamodule import RootDataModule, describe
from calosim.data.record import FEATURES
from calosim.evaluation.photons import photon_uncertainty
from calosim.evaluation.selection import check_splits, some_rows, trained_data
from calosim.explain.save import TARGETS, save_explanation
from calosim.explain.shap import NAMES, ShapSettings, compare_explainers, explained, import_shap
from calosim.explain.surrogates import PosteriorMeans, SurrogateSettings, center_surrogates
from calosim.io import check_writable
from calosim.models.checkpoints import weights_of
from calosim.models.photon_sum import PhotonSum
from calosim.particles import particle_code, particle_name
from calosim.runs import git_hash
from calosim.simulation.simulator import FastSimulator

__all__ = ["explain"]


def explain(
    out: str,
    photons: str | None = None,
    shower: str | None = None,
    particle: str | int | None = None,
    files: list[str] | None = None,
    data: str | None = None,
    settings: ShapSettings = ShapSettings(),
    surrogates: SurrogateSettings = SurrogateSettings(),
    uncertainty_rows: int = 2000,
    quiet: bool = False,
) -> None:
    """Explains the photon sum and the shower's center by the primary's features (SHAP), and how sure the photon sum is.

    Writes explain.md and explain.json, shap.csv and shap.npz, photon_uncertainty.json, .csv and .npz (by row), and
    pictures. Rows are of the test split of the data the models were trained with, background rows of its training split.

    Args:
        out: Folder for the results.
        photons: Run folder or checkpoint of the photon-sum model; the ensemble's, if ``shower`` is one that holds it.
        shower: Run folder, checkpoint or ensemble of the shower model. Surrogates of the x and y of the shower's center are
            trained on what it generates; without it only the photon sum is explained.
        particle: Explain this particle type alone; all types in their natural mix if not given.
        files: Data files, if they are no longer where the models were trained.
        data: Run folder whose data set and split are used; that of the photon-sum model if not given.
        settings: How features are explained.
        surrogates: How surrogates of the shower's center are trained.
        uncertainty_rows: Test rows whose predictive intervals are held against the observed photon sums.
        quiet: Show no progress.

    Raises:
        ValueError: If the models, the data or the settings do not fit together, or shap is not installed.
    """
    arguments = {key: value for key, value in locals().items() if key not in ("settings", "surrogates", "quiet")}
    if uncertainty_rows < 2:
        raise ValueError(f"expected uncertainty_rows of at least 2, got {uncertainty_rows}")
    # What takes minutes comes after all that can be refused at once.
    folder = Path(out)
    check_writable(folder)
    simulator, model = _models(photons, shower, settings.posterior, surrogates.devices)
    primaries = _Primaries.of(photons, shower, particle, files, data)
    chosen = primaries.rows("test", settings.rows)
    features = primaries.features(chosen)
    background = primaries.features(primaries.rows("train", settings.background))
    import_shap()
    functions, fits = _functions(simulator, model, primaries, settings, surrogates, quiet)
    values, targets = _attributions(functions, features, background, settings, quiet)
    results: dict[str, Any] = {
        **{"calosim": __version__, "git": git_hash(), "arguments": arguments | asdict(settings) | asdict(surrogates)},
        "weights": weights_of((shower, photons), folder),
        **{"data": describe(primaries.data), "particle": primaries.name, "rows": len(features)},
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

    data: RootDataModule
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
        return rows[some_rows(self.data.arrays["inputs"][rows], pdg[rows], count, together)]

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
