r"""Judges a fast simulation on test rows, beside the Monte Carlo's own floor and a trivial model.

Protocol of P4: several responses are generated for every test row, several times over; the numbers are means and
standard deviations over those runs. The floor is the Monte Carlo against itself with another seed; the trivial model
answers with a random training response of the same particle type.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from calosim.evaluation.selection import mixed_rows
from calosim.metrics.wasserstein import wasserstein
from calosim.models.shape import ShapeModule
from calosim.particles import particle_name
from calosim.shapes.pixels import NOISE_REMOVALS
from calosim.showers.datamodule import RootDataModule

__all__ = ["best_noise_removals"]

#: Fewer validation rows than this do not choose a noise removal.
MIN_ROWS_TO_CHOOSE = 20


def best_noise_removals(
    model: ShapeModule, data: RootDataModule, rows: int, seed: int, quiet: bool = False
) -> tuple[dict[int, int], dict[str, dict[int, float]]]:
    """Chooses the noise removal of each particle type by the Wasserstein distance on validation rows.

    Args:
        model: The shape model; photon sums are the true ones.
        data: The data set; of its validation split about ``rows`` rows of each type are taken.
        rows: See above; one response is generated for each.
        seed: Seed of the draws.
        quiet: Show no progress.

    Returns:
        The method by PDG code, 0 standing for all others, and the distances by particle and method.
    """
    inputs, pdg = data.inputs("val"), data.arrays["pdg"][data.rows("val")]
    chosen, natural = mixed_rows(inputs, pdg, rows, rows)
    val = data.showers("val", chosen)
    channels = {method: np.zeros((len(val), 5), dtype=np.int64) for method in NOISE_REMOVALS}
    batches = [np.arange(i, min(i + 1024, len(val))) for i in range(0, len(val), 1024)]
    for batch in tqdm(batches, desc="noise removal", disable=True if quiet else None):
        particles = torch.from_numpy(val.particles[batch]).to(model.device, torch.float32)
        photon_sum = torch.from_numpy(val.photon_sum[batch]).to(model.device)
        logits = model.generate_logits(particles, photon_sum, seed, torch.from_numpy(chosen[batch]).to(model.device))
        for method, values in channels.items():
            values[batch] = val.geometry.channels(model.logits.photons(logits, photon_sum, method).cpu().numpy())
    reference = val.geometry.channels(val.images)
    selections = {0: natural} | {int(code): val.pdg == code for code in np.unique(val.pdg)}
    methods, distances = {}, {}
    for code, some in selections.items():
        # A handful of rows cannot tell four methods apart.
        if some.sum() < MIN_ROWS_TO_CHOOSE:
            continue
        found = {m: float(wasserstein(reference[some], values[some]).mean()) for m, values in channels.items()}
        methods[code] = min(found, key=lambda m: found[m])
        distances["all" if code == 0 else particle_name(code)] = found
    return {0: 3, **methods}, distances
