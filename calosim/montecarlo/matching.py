"""Monte Carlo responses to given primaries with given photon sums: of many, those with the nearest sums."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

import numpy as np

from calosim.data.record import Showers
from calosim.montecarlo.simulate import respond

__all__ = ["nearest_free", "simulate_matched"]


def simulate_matched(
    rows: Showers,
    photon_sum: np.ndarray,
    responses: int,
    keep: int,
    seed: int,
    *,
    workers: int = 1,
    progress: bool = False,
) -> Iterator[tuple[Showers, np.ndarray]]:
    """Simulates responses to the rows' primaries and keeps, for each row, those whose photon sums are nearest to its own.

    No response is kept for two rows. Of a primary with few responses some rows get fewer, or none.

    Args:
        rows: The rows; of their images only the detector matters.
        photon_sum: Photon sums that are wanted with shape (N,).
        responses: Mean number of responses per primary to choose from, see :func:`calosim.montecarlo.simulate`.
        keep: Responses that are wanted for each row.
        seed: One seed gives one result, whatever the number of workers; not that of the rows.
        workers: Threads.
        progress: Whether to show a progress bar.

    Yields:
        Piece by piece, the kept showers, those of one primary and then of one row next to each other, and the photon sums
        (B,) that were wanted of them.

    Raises:
        ValueError: If a number is not positive, or the detector has no setup.
    """
    if min(responses, keep, workers) < 1:
        raise ValueError(
            "expected a positive number of responses per primary, of responses to keep and of workers, "
            f"got {responses}, {keep} and {workers}"
        )
    inputs, first = rows.inputs, np.unique(rows.inputs, return_index=True)[1]
    particles, pdg = rows.particles[first], rows.pdg[first]
    of_primary = np.split(np.argsort(inputs, kind="stable"), np.cumsum(np.bincount(inputs))[:-1])
    parts = respond(particles, pdg, responses, rows.geometry, seed, workers, progress)
    for images, number in _whole_primaries((found, truth.primary) for found, truth in parts):
        sums = images.sum((1, 2), dtype=np.int64)
        chosen, wanted = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for primary in np.unique(number):
            own, asked = np.flatnonzero(number == primary), photon_sum[of_primary[primary]]
            places = nearest_free(asked, sums[own], keep, np.random.default_rng((seed, primary)))
            chosen.append(own[places[places >= 0]])
            wanted.append(np.repeat(asked, (places >= 0).sum(1)))
        kept = np.concatenate(chosen)
        if len(kept):
            of = number[kept]
            yield Showers(particles[of], pdg[of], images[kept], rows.detector), np.concatenate(wanted)


def _whole_primaries(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts images and numbers of their primaries, which rise, so that all responses to a primary are in one piece."""
    held: tuple[np.ndarray, np.ndarray] | None = None
    for part in parts:
        images, number = part if held is None else (np.concatenate(both) for both in zip(held, part, strict=True))
        cut = np.searchsorted(number, number[-1]) if len(number) else 0
        if cut:
            yield images[:cut], number[:cut]
        held = images[cut:], number[cut:]
    if held is not None and len(held[1]):
        yield held


def nearest_free(wanted: np.ndarray, found: np.ndarray, keep: int, rng: np.random.Generator) -> np.ndarray:
    """Gives each wanted number some of the found ones, the nearest that are still free; each found one goes to one only.

    Takes turns, in random order, so that none is always served first.

    Args:
        wanted: Numbers with shape (K,).
        found: Numbers with shape (M,).
        keep: How many each gets, as long as there are any.
        rng: Draws the order.

    Returns:
        Positions in ``found`` with shape (K, keep), -1 where none was left.
    """
    order = np.argsort(found, kind="stable").tolist()
    values = np.sort(found, kind="stable").tolist()
    places = np.full((len(wanted), keep), -1, dtype=np.int64)
    for turn in range(keep):
        for k in rng.permutation(len(wanted)):
            if not values:
                return places
            value = float(wanted[k])
            right = bisect_left(values, value)
            # The nearer of both neighbors, the upper one of equals.
            left = right == len(values) or (right > 0 and value - values[right - 1] < values[right] - value)
            taken = right - left
            values.pop(taken)
            places[k, turn] = order.pop(taken)
    return places
