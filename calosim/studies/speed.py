"""How large models are, and how long they take for a response."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from calosim.data.record import Showers
from calosim.evaluation.selection import trained_data
from calosim.io import markdown_table
from calosim.models.base import evaluating
from calosim.models.shower import ShowerModel
from calosim.models.teacher import Teacher
from calosim.studies.cells import Cells
from calosim.studies.plan import Plan
from calosim.threads import one_thread

__all__ = ["generation_times", "measure_speeds", "speed_table"]

#: How often each model's speed is measured.
SPEED_TURNS = 3


def generation_times(
    model: ShowerModel, showers: Showers, batches: Sequence[int] = (1, 256), repeats: int = 5
) -> dict[str, float]:
    """Seconds per response of a shower model, medians, photon sums given.

    Args:
        model: The model.
        showers: Responses whose primaries and photon sums are taken.
        batches: Batch sizes.
        repeats: How often each is measured at least; what is over soon is measured for a second.

    Returns:
        ``batch 1`` and so on; of a teacher of points also ``sequential``: what a feature-by-feature inverse would take,
        as most libraries do it, at the last batch size: one full pass for each coordinate, extrapolated from single passes.
    """
    times = {}
    for batch in batches:
        row = np.arange(batch) % len(showers)
        particles = torch.from_numpy(showers.particles[row]).to(model.device, torch.float32)
        photon_sum = torch.from_numpy(showers.photon_sum[row]).to(model.device)
        rows = torch.from_numpy(row).to(model.device)

        def generate(seed: int, particles=particles, photon_sum=photon_sum, rows=rows) -> None:
            model.generate(particles, photon_sum, seed, rows)

        times[f"batch {batch}"] = _median(generate, model.device, repeats) / batch
        if isinstance(model, Teacher) and model.representation.nodes is None and batch == batches[-1]:
            size = model.representation.size
            with evaluating(model):
                transform = model.flow(model.context(particles, photon_sum)).transform
                x = torch.zeros(batch, size, device=model.device)
                one = _median(lambda seed, t=transform, x=x: t(x), model.device, repeats)
            times["sequential"] = one * size / batch
    return times


def _median(function: Any, device: torch.device, repeats: int) -> float:
    times: list[float] = []
    while len(times) <= repeats or sum(times) < 1:
        begin = time.perf_counter()
        function(len(times))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))  # the first warms up


def measure_speeds(plan: Plan, quiet: bool) -> dict[str, dict[str, float]]:
    """Times on one thread, and the number of parameters, of each label's first run that was judged."""
    runs = {label: steps[0].folder for label in plan.trainings if plan.judged((steps := plan.runs(label))[0])}
    models = {label: ShowerModel.load(run) for label, run in runs.items()}
    measured: dict[str, list[dict[str, float]]] = {label: [] for label in runs}
    with one_thread():
        # In turns: a machine's speed drifts by more than models differ.
        turns = [label for _ in range(SPEED_TURNS) for label in runs]
        for label in tqdm(turns, desc="speed", disable=True if quiet else None):
            data, _ = trained_data(runs[label])
            showers = data.showers("test", np.arange(min(256, len(data.rows("test")))))
            measured[label].append(generation_times(models[label], showers))
    return {
        label: {"parameters": sum(p.numel() for p in models[label].parameters())}
        | {key: float(np.median([one[key] for one in times])) for key in times[0]}
        for label, times in measured.items()
    }


def speed_table(plan: Plan, speeds: Mapping[str, Mapping[str, float]], cells: Cells) -> str:
    """Sizes and speeds beside the quality, as a Markdown section."""
    lines = []
    columns = [key for key in ("batch 1", "batch 256", "sequential") if any(key in speed for speed in speeds.values())]
    for label, speed in speeds.items():
        ws = cells.get(("shape", "ws", "all", label))
        quality = f"{ws.mean:.2f} ± {ws.std:.2f}" if ws else ""
        texts = [f"{1e3 * speed[key]:.2f}" if key in speed else "" for key in columns]
        lines.append([plan.title(label), f"{speed['parameters']:,}", quality, *texts])
    text = "One thread; ms per response with given photon sums, medians."
    if "sequential" in columns:
        text += " Sequential: one pass for each\ncoordinate, extrapolated from single passes."
    return f"## Size and speed\n\n{text}\n\n{markdown_table(['', 'parameters', 'WS all', *columns], lines)}\n"
