r"""Judges of the two-sample classifier test: each learns to tell generated responses from the Monte Carlo's.

A judge learns on some of the rows, stops by others and scores the rest. All that it sees of responses is computed once, in
:class:`Stack`, and shared by judges and seeds. Classes are balanced by construction: row by row, a response of the Monte
Carlo and a generated one answer the same primary, and both are in the same batch.

References:
    | Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017), https://arxiv.org/abs/1610.06545
    | CaloChallenge 2022 (Krause et al., 2024), https://arxiv.org/abs/2410.21611; its classifier: CaloChallenge/homepage,
      ``code/evaluate.py``
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from calosim.detectors import Detector
from calosim.metrics.features import Features, shower_features

__all__ = [
    "CaloChallengeNetwork",
    "ImageNetwork",
    "NetworkSettings",
    "Part",
    "Stack",
    "auc",
    "boosting",
    "network_scores",
]

Floats = NDArray[np.float32]

#: Half the side of the image network's window around the hottest pixel, and the side of its cells, in pixels.
_REACH, _CELL = 4, 4
#: Standardized inputs of a network are clipped here: rare artifacts have thousands of times too many photons.
_CLIP = 4.0


class Part(NamedTuple):
    """Rows that a judge learns from, stops by and is tested on."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Stack:
    """Responses of one kind, and what judges see of them.

    Attributes:
        images: Photon counts with shape (N, nx, ny).
        particles: Features of the primaries with shape (N, 9), see :mod:`calosim.rootio`.
        detector: The detector.
    """

    images: NDArray[np.integer]
    particles: NDArray[np.float64]
    detector: Detector

    @cached_property
    def primary(self) -> Floats:
        """Log energy, where the straight flight ends in pixels from the face's center, side, mass, charge; (N, 6)."""
        energy, vx, vy, _, px, py, pz, mass, charge = self.particles.T
        lever = np.where(pz > 0, self.detector.front_z[0], -self.detector.front_z[1]) / np.maximum(np.abs(pz), 1e-3)
        spot = [vx + px * lever - self.detector.center_x, vy + py * lever]
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
    """Trains a network and scores the test rows with its weights of the epoch that judged the validation rows best.

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
