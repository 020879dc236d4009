"""What tables call models and references, and what their metrics are: formula, unit, best value, and what they tell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from calosim.io import markdown_table

__all__ = ["DEFINITIONS", "HEADER", "RADII", "TITLES", "Definition", "definition_table", "in_units", "with_spread"]

#: What tables call the candidates, by the short names that files use.
TITLES = {
    "shape": "shape alone (true photon sums)",
    "shape_floor": "floor (Monte Carlo, same photon sums)",
    "chain": "full chain",
    "floor": "floor (Monte Carlo, other seed)",
    "halves": "floor (Monte Carlo, other half of the responses)",
    "trivial": "trivial (random training response)",
}

#: Edges of the radial profile's bins, in pixels.
RADII = np.arange(0, 41)


class Definition(NamedTuple):
    """A metric in the words and the order of :data:`HEADER`."""

    metric: str
    formula: str
    unit: str
    best: str
    tells: str


HEADER = ("metric", "formula", "unit", "best", "what it tells")

#: The references of the formulas stand in :mod:`calosim.metrics`.
DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        "WS",
        "⅕ Σᵢ ∫ |Fᵢ(w) − F̂ᵢ(w)| dw over the five channels i (four towers and the common one), F and F̂ the distribution functions "
        "of their photon sums w in the Monte Carlo and generated",
        "photons",
        "as low as the floor's",
        "whether channels have the right distribution over all primaries together",
    ),
    Definition(
        "MAE_cond",
        "Σₖ pₖ ⅕ Σᵢ |mean wᵢₖ − mean ŵᵢₖ| / Σₖ pₖ over the primaries k, with pₖ = log(1 + nₖ) for nₖ responses",
        "photons",
        "as low as the floor's",
        "whether the mean response to each primary is right",
    ),
    Definition(
        "MAE_w",
        "the same with pₖ = nₖ",
        "photons",
        "as low as the floor's",
        "the same, frequent primaries counting more",
    ),
    Definition(
        "δ",
        "mean over channels and primaries (weights pₖ) of |m̂ − m| / (m̂ + m), m the median absolute deviation of a channel over "
        "the responses to a primary, drawn towards that of its particle type where responses are few",
        "0 to 1",
        "as low as the floor's",
        "whether the responses to one primary scatter as much as they should",
    ),
    Definition(
        "JaccErr",
        "mean over neighboring channels (towers that share an edge, and the common one with each) and primaries (weights pₖ) of "
        "|Ĵ − J|, J the number of responses with light in both channels over that with light in either",
        "0 to 1",
        "as low as the floor's",
        "whether neighboring channels light up together as they should",
    ),
    Definition(
        "photon sum: MAE, RMSE, median error",
        "mean of |n̂ − n|, n̂ the median of a row's predictive distribution; root of the mean of (n̄ − n)², n̄ its mean; median of "
        "|n̂ − n| / n",
        "photons; the last %",
        "as low as the floor's",
        "how far a row's sum is from what is predicted for its primary, whose responses differ themselves",
    ),
    Definition(
        "photon sum: W1",
        "∫ |F(n) − F̂(n)| dn, F and F̂ the distribution functions of all sums in the Monte Carlo and drawn",
        "photons",
        "as low as the floor's",
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
        "AUC",
        "area under the ROC curve of a judge trained to tell generated responses from the Monte Carlo's, on primaries that it "
        "was not trained with",
        "0.5 to 1",
        "0.5",
        "in which share of pairs the judge finds the generated one",
    ),
    Definition(
        "likelihood test",
        "mean of −log q(x) over the Monte Carlo's responses x minus that over the model's own, q the model, primaries and photon "
        "sums the same",
        "nats",
        "0",
        "whether the Monte Carlo surprises the model more than its own responses do",
    ),
    Definition(
        "shower center",
        "mean (and standard deviation) of the distance between a shower's center of gravity and where its primary would hit if "
        "it flew straight",
        "cm",
        "the Monte Carlo's",
        "whether showers lie where they should",
    ),
)


def in_units(metric: str) -> str:
    """A metric's name with its unit, for the heading of a table or a picture; of a share it is the name alone.

    >>> in_units("WS"), in_units("δ")
    ('WS, photons', 'δ')
    """
    units = {known.metric: known.unit for known in DEFINITIONS}
    return f"{metric}, photons" if units.get(metric) == "photons" else metric


def definition_table() -> str:
    """The definitions as a Markdown table."""
    return markdown_table(HEADER, DEFINITIONS)


def with_spread(mean: float, std: float, form: str) -> str:
    """A mean and its standard deviation, which is left out where it is 0: of one run there is none.

    >>> with_spread(2.5, 0.25, ".2f"), with_spread(2.5, 0.0, ".2f")
    ('2.50 ± 0.25', '2.50')
    """
    return f"{mean:{form}} ± {std:{form}}" if std else f"{mean:{form}}"
