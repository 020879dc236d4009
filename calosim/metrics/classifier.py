r"""Two-sample classifier test: can a network tell generated responses from the Monte Carlo's?

Two judges of different kinds learn to: a convolutional network that sees pixels, and gradient boosted trees that see
high-level features. The area under the ROC curve (AUC) is how often a generated response looks more generated than one
of the Monte Carlo: 0.5 if the judge cannot tell, 1 if it always can.

A judge must not profit from knowing primaries by heart, so that its rows are divided *by primary*, into five parts: it
learns on three, stops by one and is tested on one. Each seed has another part as its test, so that five seeds test every
response once. The error is that of a bootstrap over primaries, on the tests of all seeds at once.

An AUC of 0.5 says as much as the judge is good. So beside every AUC belong those of :mod:`calosim.metrics.controls`: what
the judge makes of the Monte Carlo with another seed, and of the Monte Carlo damaged on purpose, its *power*.

References:
    | Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017), https://arxiv.org/abs/1610.06545
    | CaloChallenge 2022 (Krause et al., 2024), https://arxiv.org/abs/2410.21611
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from calosim.detectors import Detector
from calosim.metrics.features import GROUPS
from calosim.metrics.judges import CaloChallengeNetwork, ImageNetwork, Part, Stack, auc, boosting, network_scores
from calosim.threads import one_thread

__all__ = [
    "JUDGES",
    "ClassifierResult",
    "ClassifierSettings",
    "FeatureGroup",
    "Verdict",
    "chosen_rows",
    "classifier_test",
    "divide",
    "judged",
    "progress",
]

#: The judges by name. ``primary`` and ``photons`` are controls: boosted trees that see the primary alone, and its photon sum.
JUDGES = ("images", "features", "calochallenge", "primary", "photons")

#: Parts that primaries are divided into.
FOLDS = 5
#: Fewer primaries cannot be divided and resampled.
MIN_PRIMARIES = 20


@dataclass(frozen=True)
class ClassifierSettings:
    """How the test is made.

    Attributes:
        judges: Names from :data:`JUDGES`; none skips the test.
        seeds: Trainings of each judge, at least one, each tested on another fifth of the primaries; five test all of them.
        rows: Responses of each kind at most, drawn at random from those given.
        epochs: Passes of a network over the rows it learns from.
        resamples: Bootstrap resamples over primaries.
        seed: Seed of everything random.
    """

    judges: tuple[str, ...] = ("images", "features")
    seeds: int = 5
    rows: int = 9000
    epochs: int = 8
    resamples: int = 500
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "judges", tuple(self.judges))
        unknown = [name for name in self.judges if name not in JUDGES]
        if unknown:
            raise ValueError(f"unknown judge {unknown[0]!r}; expected some of {', '.join(JUDGES)}")
        if min(self.seeds, self.rows, self.epochs) < 1 or self.resamples < 2:
            raise ValueError(
                "expected at least one seed, row and epoch and two resamples of the classifier test, got "
                f"{self.seeds}, {self.rows}, {self.epochs} and {self.resamples}"
            )

    @classmethod
    def demo(cls) -> ClassifierSettings:
        """A test of seconds: 1,500 responses, two seeds, few epochs."""
        return cls(seeds=2, rows=1500, epochs=6)

    @classmethod
    def calochallenge(cls) -> ClassifierSettings:
        """The CaloChallenge's low-level classifier: its network, inputs, training and 60 : 20 : 20 split.

        Its showers have one response a primary, for which its split by rows is one by primaries, as here. It trains on
        the showers that there are: so does this.
        """
        return cls(judges=("calochallenge",), epochs=50, rows=10**9)


@dataclass(frozen=True)
class Verdict:
    """What one judge found.

    Attributes:
        auc: Mean over seeds of the area under the ROC curve.
        spread: Standard deviation over seeds, of trainings and of the primaries they were tested on; NaN with one seed.
        error: Standard error of the mean by bootstrap over primaries.
        low: Lower end of its 95 % interval.
        high: Upper end.
        by_seed: The area of each seed.
        seconds: What it took.
    """

    auc: float
    spread: float
    error: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    seconds: float

    @property
    def sigmas(self) -> float:
        """How many standard errors above 0.5; 0 where all scores are equal, as with the primary alone."""
        return (self.auc - 0.5) / self.error if self.error > 0 else 0.0 if self.auc == 0.5 else np.inf


@dataclass(frozen=True)
class FeatureGroup:
    """How far a group of features gives the generated responses away.

    Attributes:
        group: A key of :data:`calosim.metrics.features.GROUPS`.
        meaning: The group in words.
        importance: By how much the AUC of the judge of features falls when the group is shuffled among test rows.
        spread: Standard deviation of that over seeds; NaN with one seed.
        best: The group's feature that tells most by itself.
        single: The AUC of that feature itself: above 0.5 if it is larger in generated responses.
    """

    group: str
    meaning: str
    importance: float
    spread: float
    best: str
    single: float


@dataclass(frozen=True)
class ClassifierResult:
    """What the judges found.

    Attributes:
        verdicts: By the name of the judge.
        features: Groups of features, the most important first; empty without the judge of features.
        rows: Responses of each kind.
        primaries: Unique primaries among them.
    """

    verdicts: dict[str, Verdict]
    features: tuple[FeatureGroup, ...]
    rows: int
    primaries: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries, for files; with ``sigmas`` of every judge."""
        values = asdict(self)
        for name, verdict in self.verdicts.items():
            values["verdicts"][name]["sigmas"] = verdict.sigmas
        return values


def classifier_test(
    reference: NDArray[np.integer],
    generated: NDArray[np.integer],
    particles: NDArray[np.float64],
    inputs: NDArray[np.integer],
    detector: Detector,
    settings: ClassifierSettings | None = None,
    quiet: bool = False,
) -> ClassifierResult:
    """Tests whether judges can tell generated responses from the Monte Carlo's.

    Args:
        reference: Photon counts of the Monte Carlo with shape (N, nx, ny), integers.
        generated: Generated ones to the same primaries row by row, shape (N, nx, ny), integers.
        particles: Features of the primaries with shape (N, 9), finite.
        inputs: Unique-input numbers of the primaries with shape (N,), integers.
        detector: The detector.
        settings: How; the defaults of :class:`ClassifierSettings` if not given.
        quiet: Whether to show no progress bar.

    Returns:
        What each judge found.

    Raises:
        ValueError: If shapes disagree, images are no photon counts, features are not finite, or there are fewer than 20
            primaries.
    """
    settings = settings or ClassifierSettings()
    kept = chosen_rows(reference, generated, particles, inputs, detector, settings)
    stacks = Stack(reference[kept], particles[kept], detector), Stack(generated[kept], particles[kept], detector)
    with progress(len(settings.judges) * settings.seeds, quiet) as bar:
        return judged(stacks, np.asarray(inputs)[kept], settings, bar)


def divide(inputs: NDArray[np.integer], seed: int, index: int) -> Part:
    """Divides rows by primary for one of the seeds of a test: three fifths, one and one.

    Args:
        inputs: Unique-input numbers with shape (N,).
        seed: Seed of the test.
        index: Number of its seed, from 0; each run of five tests every primary once.

    Returns:
        The rows of each part, ascending; no primary has rows in two of them.
    """
    unique, inverse = np.unique(inputs, return_inverse=True)
    rng = np.random.default_rng((seed, index // FOLDS))
    fold = (rng.permutation(len(unique)) + index) % FOLDS
    of_row = fold[inverse]
    return Part(np.flatnonzero(of_row > 1), np.flatnonzero(of_row == 1), np.flatnonzero(of_row == 0))


def chosen_rows(
    reference: NDArray,
    generated: NDArray,
    particles: NDArray,
    inputs: NDArray,
    detector: Detector,
    settings: ClassifierSettings,
) -> NDArray[np.int64]:
    """The rows that the test uses, ascending, shape (M,), after all checks."""
    n = len(reference)
    if reference.shape != (n, *detector.shape) or generated.shape != reference.shape:
        raise ValueError(
            f"expected two sets of {detector.title} images (N, {detector.shape[0]}, {detector.shape[1]}) alike, "
            f"got {reference.shape} and {generated.shape}"
        )
    if particles.shape != (n, 9) or np.shape(inputs) != (n,):
        raise ValueError(
            f"expected features ({n}, 9) and numbers ({n},) of the primaries, got {particles.shape} and {np.shape(inputs)}"
        )
    for name, images in (("reference", reference), ("generated", generated)):
        if not np.issubdtype(images.dtype, np.integer) or images.min(initial=0) < 0:
            raise ValueError(f"expected photon counts, integers of at least 0, got {name} images of {images.dtype}")
    if not np.isfinite(particles).all():
        raise ValueError(
            f"expected finite features of the primaries, got {(~np.isfinite(particles)).sum()} that are not"
        )
    rows = np.sort(np.random.default_rng(settings.seed).permutation(n)[: settings.rows])
    primaries = len(np.unique(np.asarray(inputs)[rows]))
    if primaries < MIN_PRIMARIES:
        raise ValueError(f"expected at least {MIN_PRIMARIES} primaries for a classifier test, got {primaries}")
    return rows


def progress(trainings: int, quiet: bool) -> Any:
    """A progress bar over trainings; silent without a terminal."""
    from tqdm import tqdm

    return tqdm(total=trainings, unit="judge", desc="classifier test", disable=True if quiet else None, leave=False)


def judged(
    stacks: tuple[Stack, Stack], inputs: NDArray[np.integer], settings: ClassifierSettings, bar: Any
) -> ClassifierResult:
    """All judges on one pair of stacks.

    Each takes one thread: its products are small, threads that share them wait for each other, and beside a busy neighbor
    they wait long. With one thread the numbers are the same on any machine, too.
    """
    with one_thread(), threadpool_limits(1):
        return _judged(stacks, inputs, settings, bar)


def _judged(
    stacks: tuple[Stack, Stack], inputs: NDArray[np.integer], settings: ClassifierSettings, bar: Any
) -> ClassifierResult:
    parts = [divide(inputs, settings.seed, k) for k in range(settings.seeds)]
    unique, number = np.unique(inputs, return_inverse=True)
    rng = np.random.default_rng((settings.seed, len(unique)))
    counts = rng.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=settings.resamples)
    verdicts: dict[str, Verdict] = {}
    features: tuple[FeatureGroup, ...] = ()
    for judge in settings.judges:
        start, scores, falls = time.perf_counter(), [], []
        values = (_SEEN[judge](stacks[0]), _SEEN[judge](stacks[1])) if judge in _SEEN else None
        for k, part in enumerate(parts):
            seed = settings.seed + k
            if values is None:
                scores.append(network_scores(_NETWORKS[judge], stacks, part, settings.epochs, seed))
            else:
                trees, tested = boosting(values, part, seed), np.concatenate([v[part.test] for v in values])
                scores.append(trees.predict_proba(tested)[:, 1])
                if judge == "features":
                    falls.append(_importance(trees, tested, scores[-1], stacks[0].features.groups, seed))
            bar.update()
        if falls:
            features = _feature_groups(stacks, np.array(falls))
        verdicts[judge] = _verdict(scores, [number[p.test] for p in parts], counts, time.perf_counter() - start)
    return ClassifierResult(verdicts, features, len(inputs), len(unique))


_NETWORKS = {"images": ImageNetwork, "calochallenge": CaloChallengeNetwork}

#: What the boosted trees see of a stack.
_SEEN: dict[str, Callable[[Stack], NDArray[np.float32]]] = {
    "features": lambda s: np.concatenate([s.features.values, s.primary], 1),
    "primary": lambda s: s.primary,
    "photons": lambda s: np.concatenate([s.primary, s.photons], 1),
}


def _verdict(
    scores: list[NDArray[np.float64]], primaries: list[NDArray[np.int64]], counts: NDArray[np.integer], seconds: float
) -> Verdict:
    """The mean over seeds and its uncertainty; `primaries` numbers those of each seed's test rows, `counts` is (R, K)."""
    areas, resampled = [], []
    for score, primary in zip(scores, primaries, strict=True):
        generated, both = np.arange(len(score)) >= len(primary), np.concatenate([primary, primary])
        areas.append(float(auc(score, generated)[0]))
        resampled.append(auc(score, generated, counts[:, both]))
    # With few primaries, all those of a seed's test may be missing from a resample: then the other seeds speak.
    known = np.isfinite(resampled)
    means = np.where(known, resampled, 0.0).sum(0)[known.any(0)] / known.sum(0)[known.any(0)]
    low, high = np.percentile(means, [2.5, 97.5])
    spread = float(np.std(areas, ddof=1)) if len(areas) > 1 else float("nan")
    error = float(np.std(means, ddof=1))
    return Verdict(float(np.mean(areas)), spread, error, float(low), float(high), tuple(areas), seconds)


def _importance(
    trees: Any, tested: NDArray[np.float32], score: NDArray[np.float64], groups: tuple[str, ...], seed: int
) -> list[float]:
    """By how much the area falls when each group's columns are shuffled together among the test rows."""
    generated = np.arange(len(tested)) >= len(tested) // 2
    rng, before, falls = np.random.default_rng(seed), float(auc(score, generated)[0]), []
    for group in GROUPS:
        columns = [i for i, g in enumerate(groups) if g == group]
        shuffled = tested.copy()
        shuffled[:, columns] = tested[rng.permutation(len(tested))][:, columns]
        falls.append(before - float(auc(trees.predict_proba(shuffled)[:, 1], generated)[0]))
    return falls


def _feature_groups(stacks: tuple[Stack, Stack], falls: NDArray[np.float64]) -> tuple[FeatureGroup, ...]:
    """The table of groups, given what shuffling each one costs at every seed, (seeds, groups)."""
    first, second = (stack.features for stack in stacks)
    generated = np.arange(2 * len(first.values)) >= len(first.values)
    single = [
        float(auc(np.concatenate(column), generated)[0]) for column in zip(first.values.T, second.values.T, strict=True)
    ]
    table = []
    for (group, meaning), fall in zip(GROUPS.items(), falls.T, strict=True):
        best = max((i for i, g in enumerate(first.groups) if g == group), key=lambda i: abs(single[i] - 0.5))
        spread = float(fall.std(ddof=1)) if len(fall) > 1 else float("nan")
        table.append(FeatureGroup(group, meaning, float(fall.mean()), spread, first.names[best], single[best]))
    return tuple(sorted(table, key=lambda row: -row.importance))
