"""An evaluation's metrics as public codes compute them, in a table of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from calosim.evaluation.definitions import TITLES, with_spread
from calosim.evaluation.samples import Answers
from calosim.evaluation.selection import Selection
from calosim.io import markdown_table
from calosim.metrics.wasserstein import VARIANTS, variant_metrics
from calosim.models.base import evaluating
from calosim.options import Protocol
from calosim.simulation.simulator import FastSimulator

__all__ = ["measure_variants", "unrounded_channels", "variant_rows", "variant_tables"]

#: Rows answered at once.
BATCH = 1024
METRICS = {"ws": "WS", "mae": "MAE"}


def measure_variants(
    simulator: FastSimulator, rows: Selection, protocol: Protocol, answers: Mapping[str, Answers], reference: np.ndarray
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The wanted variants for all candidates, over the natural mix of particle types.

    Args:
        simulator: The fast simulation.
        rows: The rows.
        protocol: Which variants, and how rows were answered.
        answers: Of the candidates by title, to all rows.
        reference: Channel values of the Monte Carlo with shape (N, 5).

    Returns:
        By variant and candidate ``mean`` and ``std`` over runs of ``ws`` and ``mae``.
    """
    natural = rows.natural if rows.natural.any() else np.ones(len(rows), dtype=bool)
    result: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name in protocol.variants or []:
        result[name] = {}
        for title, answer in answers.items():
            model = title in (TITLES["shape"], TITLES["chain"])
            series: dict[str, list[float]] = {}
            for run, channels in enumerate(answer.channels):
                if model and not VARIANTS[name].rounded and simulator.shower.representation.requantizations:
                    channels = unrounded_channels(simulator, rows, protocol, run, title == TITLES["chain"])
                for key, value in variant_metrics(VARIANTS[name], reference[natural], channels[natural]).items():
                    series.setdefault(key, []).append(value)
            std = {key: float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for key, v in series.items()}
            result[name][title] = {"mean": {key: float(np.mean(v)) for key, v in series.items()}, "std": std}
    return result


def unrounded_channels(
    simulator: FastSimulator, rows: Selection, protocol: Protocol, run: int, own_sums: bool
) -> np.ndarray:
    """Channel values of a run's answers before they become whole photons, the expected noise subtracted.

    Args:
        simulator: A fast simulation whose coordinates have noise to remove.
        rows: The rows.
        protocol: How they are answered; the draws are those of the evaluation.
        run: The run.
        own_sums: Whether photon sums are drawn, or the true ones.

    Returns:
        With shape (N, responses, 5).
    """
    showers, responses, seed = rows.showers, protocol.responses, protocol.seed + run
    channels, codes = np.zeros((len(rows) * responses, 5)), np.repeat(showers.pdg, responses)
    rest = ~np.isin(codes, list(simulator.members))
    for model, mine in ((simulator.shower, rest), *((m, codes == code) for code, m in simulator.members.items())):
        numbers = np.flatnonzero(mine)
        for part in np.split(numbers, range(BATCH, len(numbers), BATCH)):
            row = part // responses
            keys = torch.from_numpy(rows.positions[row] * responses + part % responses).to(model.device)
            features = torch.from_numpy(showers.particles[row]).to(model.device, torch.float32)
            total = torch.from_numpy(showers.photon_sum[row]).to(model.device)
            if own_sums and simulator.photons is not None:
                total = simulator.photons.sample(features, seed, keys)
            x = model.generate_points(features, total, seed, keys)
            with evaluating(model):
                images = model.representation.expected(x, total, noise=False)
            channels[part] = showers.geometry.channels(images).double().cpu().numpy()
    return channels.reshape(len(rows), responses, 5)


def variant_tables(results: Mapping[str, Any]) -> list[str]:
    """The variants as Markdown.

    Args:
        results: From :func:`measure_variants`; nothing of nothing.
    """
    if not results:
        return []
    words = "; ".join(f"{name} ({VARIANTS[name].source}): {VARIANTS[name].words}" for name in results)
    header = ["as public codes compute it", *(f"{title} {name}" for name in results for title in METRICS.values())]
    lines = [
        [title, *(_cell(results[name][title], key) for name in results for key in METRICS)]
        for title in next(iter(results.values()))
    ]
    return [f"Metrics of all types as public codes compute them. {words}.", markdown_table(header, lines)]


def _cell(found: Mapping[str, Mapping[str, float]], key: str) -> str:
    return with_spread(found["mean"][key], found["std"][key], ".2f")


def variant_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The variants' rows of ``evaluation.csv``.

    Args:
        results: From :func:`measure_variants`; nothing of nothing.
    """
    for name, candidates in results.items():
        for title, found in candidates.items():
            yield from (
                [title, f"{key} of {name}", "all", found["mean"][key], found["std"][key], "", ""] for key in METRICS
            )
