"""All metrics of responses, one entry each: what it is called, how it is computed and resampled, and what it tells.

Evaluations, their tables and intervals, studies, the report and the documentation read it: a metric that has an entry in
:data:`METRICS` has a value, an interval and a definition everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from calosim.detectors import Detector
from calosim.io import markdown_table
from calosim.metrics.bootstrap import Floats, resampled_mean, resampled_wasserstein
from calosim.particles import groups

if TYPE_CHECKING:
    from calosim.metrics.wasserstein import ChannelMetric

__all__ = [
    "HEADER",
    "METRICS",
    "Definition",
    "Metric",
    "Rows",
    "definition_table",
    "definitions",
    "metric_values",
    "resampled_metrics",
    "with_spread",
]


class Rows(NamedTuple):
    """Samples for some rows in one run, beside the Monte Carlo's responses: what a metric may look at.

    Attributes:
        channels: Channel values of the samples with shape (N, G, 5), G samples of each row.
        offsets: Distances in cm of their centers of gravity from where the primary would hit if it flew straight, with shape
            (N, G); NaN for empty images.
        reference: Channel values of the Monte Carlo with shape (N, 5).
        pdg: PDG codes with shape (N,).
        primary_ids: Identifiers of the primaries with shape (N,).
        detector: The detector.
    """

    channels: NDArray
    offsets: NDArray
    reference: NDArray
    pdg: NDArray[np.integer]
    primary_ids: NDArray[np.integer]
    detector: Detector

    def of(self, some: NDArray[np.bool_]) -> Self:
        """Some of the rows, chosen by a mask with shape (N,)."""
        return self._replace(**{name: values[some] for name, values in self._asdict().items() if name != "detector"})


class Definition(NamedTuple):
    """A metric in the words and the order of :data:`HEADER`."""

    metric: str
    formula: str
    unit: str
    best: str
    tells: str


HEADER = ("metric", "formula", "unit", "best", "what it tells")
#: Where a distance from the Monte Carlo can come at best.
FLOOR = "as low as the floor's"


@dataclass(frozen=True)
class Metric:
    """An entry of the registry.

    Attributes:
        heading: What tables call it.
        formula: Its formula in words; references of formulas are with the functions.
        unit: ``photons``, ``cm``, or the range of a share.
        tells: What it tells.
        form: How it is printed, a format specification.
        values: From the rows of a run to its values: ``all``, by particle type (``gamma``), and perhaps by channel.
        resampled: From the rows of all runs, and how often each of the K primaries, ascending, is in each resample (R, K),
            to the values of ``all`` in each resample (R,), averaged over runs. None for a metric without intervals.
        target: The best value: ``zero``, or that of the Monte Carlo itself (``monte_carlo``).
        printed: Whether it is a table of ``evaluation.md``; all metrics are in the other files.
    """

    heading: str
    formula: str
    unit: str
    tells: str
    form: str
    values: Callable[[Rows], Mapping[str, float]]
    resampled: Callable[[Sequence[Rows], NDArray[np.float32]], Floats] | None = None
    target: Literal["zero", "monte_carlo"] = "zero"
    printed: bool = True

    @property
    def in_units(self) -> str:
        """Its heading with its unit, for a table or a picture; of a share it is the heading alone."""
        return f"{self.heading}, {self.unit}" if self.unit in ("photons", "cm") else self.heading

    @property
    def definition(self) -> Definition:
        """Its line in the table of definitions."""
        best = FLOOR if self.target == "zero" else "the Monte Carlo's"
        return Definition(self.heading, self.formula, self.unit, best, self.tells)


def _module(name: str) -> Any:
    """A module of this package that needs torch, imported when a metric is first computed."""
    return import_module(f"calosim.metrics.{name}")


def _collected(make: Callable[[Detector], ChannelMetric]) -> dict[str, Any]:
    """How a :class:`torchmetrics.Metric` is computed and, by its values of each primary, resampled: fields of its entry."""

    def updated(rows: Rows) -> Any:
        import torch

        metric = make(rows.detector)
        arrays = rows.channels, rows.reference, rows.pdg.astype(np.int64), rows.primary_ids
        metric.update(*(torch.from_numpy(np.asarray(array)) for array in arrays))
        return metric

    def values(rows: Rows) -> dict[str, float]:
        return {name: float(value) for name, value in updated(rows).compute().items()}

    def resampled(runs: Sequence[Rows], counts: NDArray[np.float32]) -> Floats:
        ids = np.unique(runs[0].primary_ids)
        mean, weights = np.zeros(len(ids)), np.zeros(len(ids))
        for rows in runs:
            each = updated(rows).per_primary()
            place = np.searchsorted(ids, each.primary_id)
            mean[place] += each.value / len(runs)
            weights[place] = each.weight
        return resampled_mean(mean, weights, counts)

    return {"values": values, "resampled": resampled}


def _resampled_wasserstein(runs: Sequence[Rows], counts: NDArray[np.float32]) -> Floats:
    group = np.unique(runs[0].primary_ids, return_inverse=True)[1]
    return np.mean([resampled_wasserstein(run.reference, run.channels, group, counts) for run in runs], axis=0)


def _center(statistic: Callable[[NDArray], float], rows: Rows) -> dict[str, float]:
    """A statistic of the centers' offsets over images that are not empty; NaN without any."""
    found = {}
    for name, some in groups(rows.pdg):
        offsets = rows.offsets[some]
        nonempty = offsets[~np.isnan(offsets)].astype(np.float64)
        found[name] = float(statistic(nonempty)) if len(nonempty) else float("nan")
    return found


def _resampled_center(runs: Sequence[Rows], counts: NDArray[np.float32]) -> Floats:
    offsets, group = np.stack([run.offsets for run in runs]), np.unique(runs[0].primary_ids, return_inverse=True)[1]
    nonempty = ~np.isnan(offsets)
    light = np.bincount(group, nonempty.sum((0, 2)).astype(np.float64))
    total = np.bincount(group, np.where(nonempty, offsets, 0).sum((0, 2), dtype=np.float64))
    return resampled_mean(total / np.maximum(light, 1), light, counts)


#: The metrics by the keys that files use, in the order of the tables.
METRICS: dict[str, Metric] = {
    "ws": Metric(
        "WS",
        "⅕ Σᵢ ∫ |Fᵢ(w) − F̂ᵢ(w)| dw over the five channels i (four towers and the common one), F and F̂ the distribution functions "
        "of their photon sums w in the Monte Carlo and generated",
        "photons",
        "whether channels have the right distribution over all primaries together",
        ".2f",
        **{
            **_collected(lambda detector: _module("wasserstein").CheckerboardWasserstein(detector)),
            "resampled": _resampled_wasserstein,
        },
    ),
    "mae_cond": Metric(
        "MAE_cond",
        "Σₖ pₖ ⅕ Σᵢ |mean wᵢₖ − mean ŵᵢₖ| / Σₖ pₖ over the primaries k, with pₖ = log(1 + nₖ) for nₖ responses",
        "photons",
        "whether the mean response to each primary is right",
        ".2f",
        **_collected(lambda _: _module("conditional").ConditionalMAE("log")),
    ),
    "mae_w": Metric(
        "MAE_w",
        "the same with pₖ = nₖ",
        "photons",
        "the same, frequent primaries counting more",
        ".2f",
        **_collected(lambda _: _module("conditional").ConditionalMAE("count")),
    ),
    "delta": Metric(
        "δ",
        "mean over channels and primaries (weights pₖ) of |m̂ − m| / (m̂ + m), m the median absolute deviation of a channel over "
        "the responses to a primary, drawn towards that of its particle type where responses are few",
        "0 to 1",
        "whether the responses to one primary scatter as much as they should",
        ".3f",
        **_collected(lambda _: _module("conditional").DispersionRatio()),
    ),
    "jacc": Metric(
        "JaccErr",
        "mean over neighboring channels (towers that share an edge, and the common one with each) and primaries (weights pₖ) of "
        "|Ĵ − J|, J the number of responses with light in both channels over that with light in either",
        "0 to 1",
        "whether neighboring channels light up together as they should",
        ".3f",
        **_collected(lambda detector: _module("conditional").JaccardError(detector)),
    ),
    "center": Metric(
        "distance of the shower center from the straight flight",
        "mean of the distance between a shower's center of gravity and where its primary would hit if it flew straight",
        "cm",
        "whether showers lie where they should",
        ".3f",
        partial(_center, np.mean),
        _resampled_center,
        target="monte_carlo",
        printed=False,
    ),
    "center_sd": Metric(
        "its standard deviation",
        "standard deviation of that distance",
        "cm",
        "whether showers scatter about where they should",
        ".3f",
        partial(_center, np.std),
        target="monte_carlo",
        printed=False,
    ),
}

#: What the other tables of an evaluation show.
_OTHERS = (
    Definition(
        "photon sum: MAE, RMSE, median error",
        "mean of |n̂ − n|, n̂ the median of a row's predictive distribution; root of the mean of (n̄ − n)², n̄ its mean; median of "
        "|n̂ − n| / n",
        "photons; the last %",
        FLOOR,
        "how far a row's sum is from what is predicted for its primary, whose responses differ themselves",
    ),
    Definition(
        "photon sum: W1",
        "∫ |F(n) − F̂(n)| dn, F and F̂ the distribution functions of all sums in the Monte Carlo and drawn",
        "photons",
        FLOOR,
        "whether sums have the right distribution over all primaries together",
    ),
    Definition(
        "photon sum: inside p %",
        "share of rows whose sum lies in the central interval of p % of its predictive distribution",
        "%",
        "p %",
        "whether the predictive distributions are as wide as they should be",
    ),
    Definition(
        "C2ST: AUC",
        "area under the ROC curve of a classifier trained to tell generated responses from the Monte Carlo's, on primaries that "
        "it was not trained with",
        "0.5 to 1",
        "0.5",
        "in which share of pairs the classifier finds the generated one",
    ),
    Definition(
        "likelihood test",
        "mean of −log q(x) over the Monte Carlo's responses x minus that over the model's own, q the model, primaries and photon "
        "sums the same",
        "nats",
        "0",
        "whether the Monte Carlo surprises the model more than its own responses do",
    ),
)


def definitions() -> list[Definition]:
    """What all numbers of an evaluation are."""
    return [*(metric.definition for metric in METRICS.values()), *_OTHERS]


def definition_table() -> str:
    """The definitions as a Markdown table."""
    return markdown_table(HEADER, definitions())


def with_spread(mean: float, std: float, form: str) -> str:
    """A mean and its standard deviation, which is left out where it is 0: of one run there is none.

    >>> with_spread(2.5, 0.25, ".2f"), with_spread(2.5, 0.0, ".2f")
    ('2.50 ± 0.25', '2.50')
    """
    return f"{mean:{form}} ± {std:{form}}" if std else f"{mean:{form}}"


def metric_values(rows: Rows) -> dict[str, float]:
    """All metrics of a run, by key and name: ``ws_all``, ``ws_tower1``, ``delta_gamma``."""
    return {f"{key}_{name}": value for key, metric in METRICS.items() for name, value in metric.values(rows).items()}


def resampled_metrics(runs: Sequence[Rows], counts: NDArray[np.float32], keys: Sequence[str]) -> dict[str, Floats]:
    """Metrics in each resample of primaries, averaged over runs.

    Args:
        runs: The same rows in each run.
        counts: How often each of the K primaries, ascending, is in each resample, shape (R, K).
        keys: Which metrics; those without resamples are left out.

    Returns:
        By key, values with shape (R,).
    """
    wanted = {key: METRICS[key].resampled for key in keys}
    return {key: resampled(runs, counts) for key, resampled in wanted.items() if resampled}
