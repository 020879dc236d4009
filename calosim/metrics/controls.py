"""Controls of the classifier test: the Monte Carlo with another seed, as it is, and damaged on purpose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calosim.detectors import Detector
from calosim.metrics.classifier import ClassifierResult, ClassifierSettings, chosen_rows, judged, progress
from calosim.metrics.judges import Stack

__all__ = ["classifier_controls", "damaged"]


def classifier_controls(
    reference: NDArray[np.integer],
    second: NDArray[np.integer],
    particles: NDArray[np.float64],
    inputs: NDArray[np.integer],
    detector: Detector,
    settings: ClassifierSettings | None = None,
    shares: Iterable[float] = (0.05, 0.1, 0.2),
    quiet: bool = False,
) -> dict[str, ClassifierResult]:
    """Tests the judges: what they make of the Monte Carlo itself, damaged or not.

    Args:
        reference: Photon counts of the Monte Carlo with shape (N, nx, ny), integers.
        second: Those of the Monte Carlo with another seed, to the same primaries row by row. Not the reference itself:
            a judge that sees both sides of a response learns faster than one can from a model's.
        particles: Features of the primaries with shape (N, 9), finite.
        inputs: Unique-input numbers of the primaries with shape (N,), integers.
        detector: The detector.
        settings: As for :func:`classifier_test`, whose results these belong to.
        shares: Shares of the photons that are moved by one pixel.
        quiet: Whether to show no progress bar.

    Returns:
        Results by ``mc`` (0.5 if the test is right, with the judge ``primary`` beside the others, which must find 0.5
        exactly) and ``damaged_05``, ``damaged_10``, ... by the percentage of moved photons.

    Raises:
        ValueError: As :func:`classifier_test`, or if a share is not between 0 and 1.
    """
    settings, shares = settings or ClassifierSettings(), tuple(shares)
    kept = chosen_rows(reference, second, particles, inputs, detector, settings)
    number, primaries, other = np.asarray(inputs)[kept], particles[kept], second[kept]
    first = Stack(reference[kept], primaries, detector)
    with_primary = replace(settings, judges=(*settings.judges, "primary"))
    trainings = (len(settings.judges) * (1 + len(shares)) + 1) * settings.seeds
    with progress(trainings, quiet) as bar:
        results = {"mc": judged((first, Stack(other, primaries, detector)), number, with_primary, bar)}
        for share in shares:
            worse = Stack(damaged(other, share, settings.seed), primaries, detector)
            results[f"damaged_{100 * share:02.0f}"] = judged((first, worse), number, settings, bar)
    return results


def damaged(images: NDArray[np.integer], share: float, seed: int) -> NDArray[np.int64]:
    """Moves some of the photons by one pixel, up, down, left or right alike.

    Photons that would leave the face move the other way; along a side of one pixel none can move, so that all go along
    the other one.

    Args:
        images: Photon counts with shape (N, nx, ny), not negative.
        share: The probability of a photon to be moved, in [0, 1].
        seed: The seed.

    Returns:
        Photon counts with shape (N, nx, ny), with the same photon sums.

    Raises:
        ValueError: If the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share of moved photons between 0 and 1, got {share}")
    rng, rest = np.random.default_rng(seed), np.asarray(images, dtype=np.int64)
    steps = [(axis, step) for axis in (1, 2) if rest.shape[axis] > 1 for step in (1, -1)]
    moving = rng.binomial(rest, share) if steps else np.zeros_like(rest)
    result = rest - moving
    for k, (axis, step) in enumerate(steps):
        some = rng.binomial(moving, 1 / (len(steps) - k))
        moving = moving - some
        # Views with the axis in front and pointing along the step, so that all four ways are one.
        source, target = (np.moveaxis(a, axis, 0)[::step] for a in (some, result))
        target[1:] += source[:-1]
        target[-2] += source[-1]
    return result
