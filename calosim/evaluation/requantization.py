"""The choice of noise removal: the way from coordinates to photon counts that comes closest on validation rows."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from calosim.data.datamodule import RootDataModule
from calosim.evaluation.selection import Selection, select_rows
from calosim.metrics.wasserstein import wasserstein
from calosim.models.shower import ShowerModel
from calosim.options import Protocol
from calosim.particles import particle_name

__all__ = ["best_requantizations"]

#: Fewer validation rows than this do not choose a noise removal.
MIN_ROWS_TO_CHOOSE = 20


def best_requantizations(
    model: ShowerModel, data: RootDataModule, rows: int, seed: int, quiet: bool = False
) -> tuple[dict[int, int], dict[str, dict[int, float]]]:
    """Chooses the noise removal of each particle type by the Wasserstein distance on validation rows.

    Args:
        model: The shower model; photon sums are the true ones.
        data: The data set; of its validation split about ``rows`` rows of each type are taken.
        rows: See above; one response is generated for each.
        seed: Seed of the draws.
        quiet: Show no progress.

    Returns:
        The method by PDG code, 0 standing for all others, where there are rows enough to choose; and the distances by
        particle and method.

    Raises:
        ValueError: If the model has no noise to remove.
    """
    if not model.representation.requantizations:
        raise ValueError("this model's counts come out exactly; there is no noise removal to choose")
    val = select_rows(data, Protocol(split="val", rows=rows, rows_of_each=rows))
    channels = _generated_channels(model, val, seed, quiet)
    reference, pdg = val.showers.geometry.channels(val.showers.images), val.showers.pdg
    selections = {0: val.natural} | {int(code): pdg == code for code in np.unique(pdg)}
    methods, distances = {}, {}
    for code, some in selections.items():
        # A handful of rows cannot tell four methods apart.
        if some.sum() < MIN_ROWS_TO_CHOOSE:
            continue
        found = {m: float(wasserstein(reference[some], values[some]).mean()) for m, values in channels.items()}
        methods[code] = min(found, key=lambda m: found[m])
        distances["all" if code == 0 else particle_name(code)] = found
    return methods, distances


def _generated_channels(model: ShowerModel, rows: Selection, seed: int, quiet: bool) -> dict[int, np.ndarray]:
    """Channel values (N, 5) of one response to each row, by noise removal."""
    showers, photon_sums = rows.showers, rows.showers.photon_sum
    channels = {method: np.zeros((len(rows), 5), dtype=np.int64) for method in model.representation.requantizations}
    batches = [np.arange(i, min(i + 1024, len(rows))) for i in range(0, len(rows), 1024)]
    for batch in tqdm(batches, desc="noise removal", disable=True if quiet else None):
        particles = torch.from_numpy(showers.particles[batch]).to(model.device, torch.float32)
        photon_sum = torch.from_numpy(photon_sums[batch]).to(model.device)
        keys = torch.from_numpy(rows.positions[batch]).to(model.device)
        x = model.generate_points(particles, photon_sum, seed, keys)
        for method, values in channels.items():
            images = model.representation.decode(x, photon_sum, method)
            values[batch] = showers.geometry.channels(images.cpu().numpy())
    return channels
