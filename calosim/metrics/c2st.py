"""The classifier two-sample test (C2ST): classifiers that learn to tell generated responses from the Monte Carlo's.

A classifier learns on some of the rows, stops by others and scores the rest. All that it sees of responses is computed once, in
:class:`Stack`, and shared by classifiers and seeds. Classes are balanced by construction: row by row, a response of the Monte
Carlo and a generated one answer the same primary, and both are in the same batch.

Two of different kinds learn to: a convolutional network that sees pixels, and gradient boosted trees that see
high-level features. The area under the ROC curve (AUC) is how often a generated response looks more generated than one
of the Monte Carlo: 0.5 if the classifier cannot tell, 1 if it always can.

A classifier must not profit from knowing primaries by heart, so that its rows are divided *by primary*, into five parts: it
learns on three, stops by one and is tested on one. Each seed has another part as its test, so that five seeds test every
response once. The error is that of a bootstrap over primaries, on the tests of all seeds at once.

An AUC of 0.5 says as much as the classifier is good. So beside every AUC belong those of :func:`c2st_controls`: what the
classifier makes of the Monte Carlo with another seed, and of the Monte Carlo damaged on purpose, its *power*.

References:
    | Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017), https://arxiv.org/abs/1610.06545
    | CaloChallenge 2022 (Krause et al., 2024), https://arxiv.org/abs/2410.21611; its classifier: CaloChallenge/homepage,
      ``code/evaluate.py``
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from calosim.detectors import Detector
from calosim.metrics.features import GROUPS, Features, shower_features
from calosim.processes import one_thread

__all__ = [
    "CLASSIFIERS",
    "MIN_PRIMARIES",
    "C2STResult",
    "C2STSettings",
    "FeatureGroup",
    "Stack",
    "Verdict",
    "auc",
    "c2st",
    "c2st_controls",
    "damaged",
    "divide",
]


Floats = NDArray[np.float32]

#: Half the side of the image network's window around the hottest pixel, and the side of its cells, in pixels.
_REACH, _CELL = 4, 4
#: Standardized inputs of a network are clipped here: rare artifacts have thousands of times too many photons.
_CLIP = 4.0


class Part(NamedTuple):
    """Rows that a classifier learns from, stops by and is tested on."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Stack:
    """Responses of one kind, and what classifiers see of them.

    Attributes:
        images: Photon counts with shape (N, nx, ny).
        particles: Features of the primaries with shape (N, 9), see :data:`calosim.data.record.FEATURES`.
        detector: The detector.
    """

    images: NDArray[np.integer]
    particles: NDArray[np.float64]
    detector: Detector

    @cached_property
    def primary(self) -> Floats:
        """Log energy, where the straight flight ends in pixels from the face's center, side, mass, charge; (N, 6)."""
        energy, pz, mass, charge = self.particles.T[[0, 6, 7, 8]]
        spot = self.detector.straight_flight(
            self.particles, np.where(pz > 0, self.detector.front_z[0], -self.detector.front_z[1])
        )
        half = [max(size, 1e-9) for size in self.detector.size]
        x, y = (np.clip(s, -h, h) / self.detector.pitch for s, h in zip(spot, half, strict=True))
        return np.stack([np.log1p(np.abs(energy)), x, y, np.sign(pz), mass, charge], 1).astype(np.float32)

    @cached_property
    def photons(self) -> Floats:
        """Log photon sums with shape (N, 1)."""
        return np.log1p(self.images.sum((1, 2), dtype=np.float64)).astype(np.float32)[:, None]

    @cached_property
    def features(self) -> Features:
        """The high-level features."""
        return shower_features(self.images, self.detector)

    @cached_property
    def hottest(self) -> NDArray[np.int64]:
        """Row and column of the hottest pixel, the first of equals; (N, 2)."""
        flat = self.images.reshape(len(self.images), -1).argmax(1)
        return np.stack(np.unravel_index(flat, self.detector.shape), 1)

    @cached_property
    def window(self) -> Floats:
        """Counts and counts of the common channel around the hottest pixel, (N, 2, 9, 9), zero beside the face.

        Windows are flipped and transposed so that the brighter neighbours lie on one side. Where the shower fell within
        the hottest pixel is then the same for all, and the network need not learn it eight times.
        """
        odd = (np.indices(self.detector.shape).sum(0) % 2).astype(np.float32)
        step, rows = np.arange(2 * _REACH + 1), np.arange(len(self.images))[:, None, None]
        i, j = self.hottest[:, :1] + step, self.hottest[:, 1:] + step
        margin = (_REACH, _REACH)
        cut = np.pad(self.images, ((0, 0), margin, margin))[rows, i[:, :, None], j[:, None, :]].astype(np.float32)
        parity = np.pad(odd, (margin, margin))[i[:, :, None], j[:, None, :]]
        both = np.stack([cut, cut * parity], 1)
        r = _REACH
        for turn, first, second in (
            (lambda w: w[:, :, ::-1], (r - 1, r), (r + 1, r)),
            (lambda w: w[:, :, :, ::-1], (r, r - 1), (r, r + 1)),
            (lambda w: w.swapaxes(2, 3), (r, r + 1), (r + 1, r)),
        ):
            wrong = both[:, 0, *first] > both[:, 0, *second]
            both[wrong] = turn(both[wrong])
        return both

    @cached_property
    def cells(self) -> Floats:
        """Counts and counts of the common channel in cells of 4 x 4 pixels, (N, 2, cells along x, along y)."""
        odd = (np.indices(self.detector.shape).sum(0) % 2).astype(np.float32)
        beyond = [(0, -side % _CELL) for side in self.detector.shape]
        sums = []
        for part in (self.images, self.images * odd):
            padded = np.pad(part, ((0, 0), *beyond))
            split = (padded.shape[1] // _CELL, _CELL, padded.shape[2] // _CELL, _CELL)
            sums.append(padded.reshape(len(padded), *split).sum((2, 4)))
        return np.stack(sums, 1).astype(np.float32)

    @cached_property
    def context(self) -> Floats:
        """What the image network knows beside pixels: primary, photon sum, hottest pixel, pair counts; (N, C)."""
        kept = [i for i, group in enumerate(self.features.groups) if group in ("pairs", "halo_pairs")]
        pairs = np.log(np.maximum(self.features.values[:, kept], 0) + 1e-3)
        return np.concatenate([self.primary, self.photons, self.hottest.astype(np.float32), pairs], 1)


def auc(score: NDArray, generated: NDArray[np.bool_], weights: NDArray | None = None) -> NDArray[np.float64]:
    r"""Area under the ROC curve: how often a generated response scores above one of the Monte Carlo, ties counted half.

    Args:
        score: Scores with shape (N,).
        generated: Which rows are generated, shape (N,).
        weights: How often each row counts, shape (R, N), for R resamples; once each by default.

    Returns:
        Areas with shape (R,); NaN where a resample lacks one of the kinds.
    """
    weights = np.ones((1, len(score))) if weights is None else weights
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) != 0)
    fake, real = (
        np.add.reduceat(np.where(kind, weights, 0.0)[:, order], starts, axis=1) for kind in (generated, ~generated)
    )
    below = np.cumsum(real, 1) - real / 2
    pairs = fake.sum(1) * real.sum(1)
    return np.where(pairs > 0, (fake * below).sum(1) / np.where(pairs > 0, pairs, 1), np.nan)


def boosting(values: tuple[Floats, Floats], part: Part, seed: int) -> Any:
    """Fits gradient boosted trees to features of the Monte Carlo's and of generated responses.

    Args:
        values: Features of the Monte Carlo's responses and of generated ones, twice (N, F).
        part: The rows to learn from and to stop by.
        seed: The seed.

    Returns:
        The fitted :class:`sklearn.ensemble.HistGradientBoostingClassifier`; class 1 is generated.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(
        learning_rate=0.08,
        max_iter=400,
        max_leaf_nodes=12,
        min_samples_leaf=40,
        l2_regularization=1.0,
        max_features=0.2,
        early_stopping=True,
        n_iter_no_change=25,
        scoring="loss",
        random_state=seed,
    )
    x, held = (np.concatenate([v[rows] for v in values]) for rows in (part.train, part.validation))
    y, held_y = (np.repeat([0, 1], len(rows)) for rows in (part.train, part.validation))
    return trees.fit(x, y, X_val=held, y_val=held_y)


@dataclass(frozen=True)
class NetworkSettings:
    """How a network is trained.

    Attributes:
        rate: The highest learning rate.
        pairs: Responses of each kind in a batch, at most.
        batches: Batches of an epoch at least, of 16 pairs or more: few rows make smaller batches, not fewer steps.
        decay: Decoupled weight decay.
        cosine: Whether the learning rate warms up and falls along a cosine; else it is constant.
        standardize: Whether inputs with two axes are standardized and clipped.
    """

    rate: float
    pairs: int
    batches: int
    decay: float
    cosine: bool
    standardize: bool


class ImageNetwork(nn.Module):
    """A small convolutional network: full resolution where the light is, cells everywhere, and the context.

    A photon moved by one pixel is a matter of the pixels around the brightest, so no stride comes before it is seen.

    Args:
        inputs: The inputs of :meth:`inputs`, of any number of rows; for their shapes.
        width: Channels of the convolutions.
        hidden: Units of the first layer above them.
        dropout: Share of units dropped in training.
    """

    settings = NetworkSettings(rate=3e-3, pairs=64, batches=32, decay=1e-2, cosine=True, standardize=True)

    def __init__(self, inputs: tuple[Tensor, ...], width: int = 8, hidden: int = 64, dropout: float = 0.1):
        super().__init__()
        window, cells, context = inputs
        self.near = nn.Sequential(
            nn.Conv2d(4, width, 3), nn.SiLU(), nn.Conv2d(width, width, 3), nn.SiLU(), nn.Flatten()
        )
        convolutions = (nn.Conv2d(i, width, 3, stride=2, padding=1) for i in (3, width))
        self.far = nn.Sequential(next(convolutions), nn.SiLU(), next(convolutions), nn.SiLU(), nn.Flatten())
        pixels = (window.shape[-1] - 4) ** 2 + math.prod(-(-side // 4) for side in cells.shape[2:])
        sizes = (width * pixels + context.shape[1], hidden, hidden // 2)
        layers: list[nn.Module] = []
        for size, larger in zip(sizes[1:], sizes, strict=False):
            layers += [nn.Dropout(dropout), nn.Linear(larger, size), nn.SiLU()]
        self.head = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(sizes[-1], 1))

    @staticmethod
    def inputs(stack: Stack) -> tuple[Floats, ...]:
        """Window (N, 2, 9, 9), cells (N, 2, cells along x, along y) and context (N, C)."""
        return stack.window, stack.cells, stack.context

    def forward(self, window: Tensor, cells: Tensor, context: Tensor) -> Tensor:
        """Scores with shape (B,)."""
        light, coarse = torch.log1p(window) / 2, torch.log1p(cells) / 2
        peak = light[:, :1, _REACH : _REACH + 1, _REACH : _REACH + 1]
        near = self.near(torch.cat([light, light[:, :1] - peak, (window[:, :1] > 0).to(light)], 1))
        far = self.far(torch.cat([coarse, (cells[:, :1] > 0).to(light)], 1))
        return self.head(torch.cat([near, far, context], 1))[:, 0]


class CaloChallengeNetwork(nn.Module):
    """The CaloChallenge's classifier of low-level features: log energy, and every pixel over the energy.

    As published, "two hidden layers" come after a first one of the same width. Figures compare with published ones in
    method only: data sets, numbers of rows and of pixels differ.

    Args:
        inputs: The inputs of :meth:`inputs`, of any number of rows; for their shapes.
        hidden: Units of a layer.
    """

    settings = NetworkSettings(rate=2e-4, pairs=500, batches=1, decay=0.0, cosine=False, standardize=False)

    def __init__(self, inputs: tuple[Tensor, ...], hidden: int = 512):
        super().__init__()
        sizes = (inputs[0].shape[1], hidden, hidden, hidden)
        layers: list[nn.Module] = []
        for size, before in zip(sizes[1:], sizes, strict=False):
            layers += [nn.Linear(before, size), nn.LeakyReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, 1))

    @staticmethod
    def inputs(stack: Stack) -> tuple[Floats, ...]:
        """One array (N, 1 + pixels)."""
        energy = np.maximum(stack.particles[:, :1], 1e-9)
        pixels = stack.images.reshape(len(energy), -1) / energy
        return (np.concatenate([np.log10(energy), pixels], 1).astype(np.float32),)

    def forward(self, values: Tensor) -> Tensor:
        """Scores with shape (B,)."""
        return self.layers(values)[:, 0]


def network_scores(
    kind: type[ImageNetwork] | type[CaloChallengeNetwork],
    stacks: tuple[Stack, Stack],
    part: Part,
    epochs: int,
    seed: int,
) -> NDArray[np.float64]:
    """Trains a network and scores the test rows with its weights of the epoch that told the validation rows best.

    Args:
        kind: The network.
        stacks: The Monte Carlo's responses and generated ones, row by row to the same primaries.
        part: The rows to learn from, to stop by and to score.
        epochs: Passes over the rows to learn from.
        seed: The seed; torch's global random state is as before afterwards.

    Returns:
        Scores of the Monte Carlo's test rows and then of the generated ones, shape (2 len(part.test),).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows, inputs = len(stacks[0].images), _tensors(kind, stacks)
        network, best, scores = kind(inputs), -1.0, np.zeros(2 * len(part.test))
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=kind.settings.rate, weight_decay=kind.settings.decay, fused=True
        )
        most = max(16, len(part.train) // kind.settings.batches)
        batch = min(kind.settings.pairs, most, len(part.train))
        steps = epochs * (len(part.train) // batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, _schedule(steps) if kind.settings.cosine else lambda _: 1.0
        )
        label = torch.repeat_interleave(torch.tensor([0.0, 1.0]), batch)
        for _ in range(epochs):
            network.train()
            shuffled = torch.from_numpy(part.train)[torch.randperm(len(part.train))]
            for some in shuffled[: len(shuffled) // batch * batch].split(batch):
                both = torch.cat([some, some + rows])
                loss = F.binary_cross_entropy_with_logits(network(*(t[both] for t in inputs)), label)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            reached = _score(network, inputs, part.validation, rows)
            value = float(auc(reached, np.arange(len(reached)) >= len(part.validation))[0])
            if value > best:
                best, scores = value, _score(network, inputs, part.test, rows)
    return scores


def _schedule(steps: int) -> Any:
    """Factors of the learning rate: at most 50 steps of warming up, times a cosine from 1 to nearly 0."""
    warm = min(50, steps // 5 + 1)
    return lambda step: min(1.0, (step + 1) / warm) * (0.01 + 0.495 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


def _tensors(kind: type[ImageNetwork] | type[CaloChallengeNetwork], stacks: tuple[Stack, Stack]) -> tuple[Tensor, ...]:
    joined = [np.concatenate(both) for both in zip(*(kind.inputs(s) for s in stacks), strict=True)]
    if kind.settings.standardize:
        flat = [i for i, a in enumerate(joined) if a.ndim == 2]
        for i in flat:
            scaled = (joined[i] - joined[i].mean(0)) / np.maximum(joined[i].std(0), 1e-6)
            joined[i] = scaled.clip(-_CLIP, _CLIP)
    return tuple(torch.from_numpy(a) for a in joined)


@torch.no_grad()
def _score(network: nn.Module, inputs: tuple[Tensor, ...], rows: NDArray[np.int64], second: int) -> NDArray[np.float64]:
    network.eval()
    both = torch.from_numpy(np.concatenate([rows, rows + second]))
    return torch.cat([network(*(t[some] for t in inputs)) for some in both.split(1024)]).double().numpy()


#: The classifiers by name. ``primary`` and ``photons`` are controls: boosted trees that see the primary alone, and with its
#: photon sum.
CLASSIFIERS = ("images", "features", "calochallenge", "primary", "photons")

#: Parts that primaries are divided into.
FOLDS = 5
#: Fewer primaries cannot be divided and resampled.
MIN_PRIMARIES = 20


@dataclass(frozen=True)
class C2STSettings:
    """How the test is made.

    Attributes:
        classifiers: Names from :data:`CLASSIFIERS`; none skips the test.
        seeds: Trainings of each classifier, at least one, each tested on another fifth of the primaries; five test all of them.
        rows: Responses of each kind at most, drawn at random from those given.
        epochs: Passes of a network over the rows it learns from.
        resamples: Bootstrap resamples over primaries.
        seed: Seed of everything random.
    """

    classifiers: tuple[str, ...] = ("images", "features")
    seeds: int = 5
    rows: int = 9000
    epochs: int = 8
    resamples: int = 500
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "classifiers", tuple(self.classifiers))
        unknown = [name for name in self.classifiers if name not in CLASSIFIERS]
        if unknown:
            raise ValueError(f"unknown classifier {unknown[0]!r}; expected some of {', '.join(CLASSIFIERS)}")
        if min(self.seeds, self.rows, self.epochs) < 1 or self.resamples < 2:
            raise ValueError(
                "expected at least one seed, row and epoch and two resamples of the C2ST, got "
                f"{self.seeds}, {self.rows}, {self.epochs} and {self.resamples}"
            )

    @classmethod
    def calochallenge(cls) -> C2STSettings:
        """The CaloChallenge's low-level classifier: its network, inputs, training and 60 : 20 : 20 split.

        Its showers have one response a primary, for which its split by rows is one by primaries, as here. It trains on
        the showers that there are: so does this.
        """
        return cls(classifiers=("calochallenge",), epochs=50, rows=10**9)


@dataclass(frozen=True)
class Verdict:
    """What one classifier found.

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
        importance: By how much the AUC of the boosted trees falls when the group is shuffled among test rows.
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
class C2STResult:
    """What the classifiers found.

    Attributes:
        verdicts: By the name of the classifier.
        features: Groups of features, the most important first; empty without ``features``.
        rows: Responses of each kind.
        primaries: Unique primaries among them.
    """

    verdicts: dict[str, Verdict]
    features: tuple[FeatureGroup, ...]
    rows: int
    primaries: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries, for files; with ``sigmas`` of every classifier."""
        values = asdict(self)
        for name, verdict in self.verdicts.items():
            values["verdicts"][name]["sigmas"] = verdict.sigmas
        return values


def c2st(
    reference: NDArray[np.integer],
    generated: NDArray[np.integer],
    particles: NDArray[np.float64],
    primary_ids: NDArray[np.integer],
    detector: Detector,
    settings: C2STSettings | None = None,
    quiet: bool = False,
) -> C2STResult:
    """Tests whether classifiers can tell generated responses from the Monte Carlo's.

    Args:
        reference: Photon counts of the Monte Carlo with shape (N, nx, ny), integers.
        generated: Generated ones to the same primaries row by row, shape (N, nx, ny), integers.
        particles: Features of the primaries with shape (N, 9), finite.
        primary_ids: Identifiers of the primaries with shape (N,), integers.
        detector: The detector.
        settings: How; the defaults of :class:`C2STSettings` if not given.
        quiet: Whether to show no progress bar.

    Returns:
        What each classifier found.

    Raises:
        ValueError: If shapes disagree, images are no photon counts, features are not finite, or there are fewer than 20
            primaries.
    """
    settings = settings or C2STSettings()
    kept = chosen_rows(reference, generated, particles, primary_ids, detector, settings)
    stacks = Stack(reference[kept], particles[kept], detector), Stack(generated[kept], particles[kept], detector)
    with progress(len(settings.classifiers) * settings.seeds, quiet) as bar:
        return tested(stacks, np.asarray(primary_ids)[kept], settings, bar)


def divide(primary_ids: NDArray[np.integer], seed: int, index: int) -> Part:
    """Divides rows by primary for one of the seeds of a test: three fifths, one and one.

    Args:
        primary_ids: Identifiers of the primaries with shape (N,).
        seed: Seed of the test.
        index: Number of its seed, from 0; each run of five tests every primary once.

    Returns:
        The rows of each part, ascending; no primary has rows in two of them.
    """
    unique, inverse = np.unique(primary_ids, return_inverse=True)
    rng = np.random.default_rng((seed, index // FOLDS))
    fold = (rng.permutation(len(unique)) + index) % FOLDS
    of_row = fold[inverse]
    return Part(np.flatnonzero(of_row > 1), np.flatnonzero(of_row == 1), np.flatnonzero(of_row == 0))


def chosen_rows(
    reference: NDArray,
    generated: NDArray,
    particles: NDArray,
    primary_ids: NDArray,
    detector: Detector,
    settings: C2STSettings,
) -> NDArray[np.int64]:
    """The rows that the test uses, ascending, shape (M,), after all checks."""
    n = len(reference)
    if reference.shape != (n, *detector.shape) or generated.shape != reference.shape:
        raise ValueError(
            f"expected two sets of {detector.title} images (N, {detector.shape[0]}, {detector.shape[1]}) alike, "
            f"got {reference.shape} and {generated.shape}"
        )
    if particles.shape != (n, 9) or np.shape(primary_ids) != (n,):
        raise ValueError(
            f"expected features ({n}, 9) and numbers ({n},) of the primaries, got {particles.shape} and {np.shape(primary_ids)}"
        )
    for name, images in (("reference", reference), ("generated", generated)):
        if not np.issubdtype(images.dtype, np.integer) or images.min(initial=0) < 0:
            raise ValueError(f"expected photon counts, integers of at least 0, got {name} images of {images.dtype}")
    if not np.isfinite(particles).all():
        raise ValueError(
            f"expected finite features of the primaries, got {(~np.isfinite(particles)).sum()} that are not"
        )
    rows = np.sort(np.random.default_rng(settings.seed).permutation(n)[: settings.rows])
    primaries = len(np.unique(np.asarray(primary_ids)[rows]))
    if primaries < MIN_PRIMARIES:
        raise ValueError(f"expected at least {MIN_PRIMARIES} primaries for a C2ST, got {primaries}")
    return rows


def progress(trainings: int, quiet: bool) -> Any:
    """A progress bar over trainings; silent without a terminal."""
    from tqdm import tqdm

    return tqdm(total=trainings, unit="classifier", desc="C2ST", disable=True if quiet else None, leave=False)


def tested(
    stacks: tuple[Stack, Stack], primary_ids: NDArray[np.integer], settings: C2STSettings, bar: Any
) -> C2STResult:
    """All classifiers on one pair of stacks.

    Each takes one thread: its products are small, threads that share them wait for each other, and beside a busy neighbor
    they wait long. With one thread the numbers are the same on any machine, too.
    """
    with one_thread(), threadpool_limits(1):
        return _tested(stacks, primary_ids, settings, bar)


def _tested(
    stacks: tuple[Stack, Stack], primary_ids: NDArray[np.integer], settings: C2STSettings, bar: Any
) -> C2STResult:
    parts = [divide(primary_ids, settings.seed, k) for k in range(settings.seeds)]
    unique, number = np.unique(primary_ids, return_inverse=True)
    rng = np.random.default_rng((settings.seed, len(unique)))
    counts = rng.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=settings.resamples)
    verdicts: dict[str, Verdict] = {}
    features: tuple[FeatureGroup, ...] = ()
    for classifier in settings.classifiers:
        start, scores, falls = time.perf_counter(), [], []
        values = (_SEEN[classifier](stacks[0]), _SEEN[classifier](stacks[1])) if classifier in _SEEN else None
        for k, part in enumerate(parts):
            seed = settings.seed + k
            if values is None:
                scores.append(network_scores(_NETWORKS[classifier], stacks, part, settings.epochs, seed))
            else:
                trees, tested = boosting(values, part, seed), np.concatenate([v[part.test] for v in values])
                scores.append(trees.predict_proba(tested)[:, 1])
                if classifier == "features":
                    falls.append(_importance(trees, tested, scores[-1], stacks[0].features.groups, seed))
            bar.update()
        if falls:
            features = _feature_groups(stacks, np.array(falls))
        verdicts[classifier] = _verdict(scores, [number[p.test] for p in parts], counts, time.perf_counter() - start)
    return C2STResult(verdicts, features, len(primary_ids), len(unique))


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


def c2st_controls(
    reference: NDArray[np.integer],
    second: NDArray[np.integer],
    particles: NDArray[np.float64],
    primary_ids: NDArray[np.integer],
    detector: Detector,
    settings: C2STSettings | None = None,
    shares: Iterable[float] = (0.05, 0.1, 0.2),
    quiet: bool = False,
) -> dict[str, C2STResult]:
    """Tests the classifiers: what they make of the Monte Carlo itself, damaged or not.

    Args:
        reference: Photon counts of the Monte Carlo with shape (N, nx, ny), integers.
        second: Those of the Monte Carlo with another seed, to the same primaries row by row. Not the reference itself:
            a classifier that sees both sides of a response learns faster than one can from a model's.
        particles: Features of the primaries with shape (N, 9), finite.
        primary_ids: Identifiers of the primaries with shape (N,), integers.
        detector: The detector.
        settings: As for :func:`c2st`, whose results these belong to.
        shares: Shares of the photons that are moved by one pixel.
        quiet: Whether to show no progress bar.

    Returns:
        Results by ``mc`` (0.5 if the test is right, with the classifier ``primary`` beside the others, which must find 0.5
        exactly) and ``damaged_05``, ``damaged_10``, ... by the percentage of moved photons.

    Raises:
        ValueError: As :func:`c2st`, or if a share is not between 0 and 1.
    """
    settings, shares = settings or C2STSettings(), tuple(shares)
    kept = chosen_rows(reference, second, particles, primary_ids, detector, settings)
    number, primaries, other = np.asarray(primary_ids)[kept], particles[kept], second[kept]
    first = Stack(reference[kept], primaries, detector)
    with_primary = replace(settings, classifiers=(*settings.classifiers, "primary"))
    trainings = (len(settings.classifiers) * (1 + len(shares)) + 1) * settings.seeds
    with progress(trainings, quiet) as bar:
        results = {"mc": tested((first, Stack(other, primaries, detector)), number, with_primary, bar)}
        for share in shares:
            worse = Stack(damaged(other, share, settings.seed), primaries, detector)
            results[f"damaged_{100 * share:02.0f}"] = tested((first, worse), number, settings, bar)
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
