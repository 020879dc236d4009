"""What a peer is: a model that learns for given minutes and answers primaries with images of given photon sums."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from lightning import seed_everything
from torch import Tensor, nn

from calosim import rng
from calosim.data.record import Showers
from calosim.detectors import Detector
from calosim.representations import FeatureScaler

from .counts import rounded, with_sum

__all__ = ["Batches", "Budget", "ImagePeer", "Peer", "RealImagePeer", "descend", "fit_rows"]

Batch = dict[str, Tensor]
#: Rows that standardizations are fitted to; a quarter of calosim's, which take seconds of a short training.
FIT_ROWS = 5000


class Budget:
    """Time of a training, which begins now: what a schedule follows and what ends it.

    It is the processor's, divided by the threads, so that other jobs on the machine take nothing from a peer; on an idle
    machine it is the clock's.

    Args:
        minutes: How long.
        warmup: Steps until the full learning rate is reached.
        final: What is left of it at the end.
    """

    def __init__(self, minutes: float, warmup: int = 50, final: float = 0.02):
        self.seconds, self.warmup, self.final = 60 * minutes, warmup, final
        self._begin = time.process_time()

    @property
    def elapsed(self) -> float:
        """Processor seconds of a thread since the beginning."""
        return (time.process_time() - self._begin) / torch.get_num_threads()

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied by: a linear rise over steps, then half a cosine over the time."""
        spent = min(1.0, self.elapsed / self.seconds)
        cosine = self.final + (1 - self.final) * (1 + math.cos(math.pi * spent)) / 2
        return min(1.0, (step + 1) / (self.warmup + 1)) * cosine

    def steps(self, *optimizers: torch.optim.Optimizer) -> Iterator[int]:
        """Step numbers until the time is over, the learning rates set for each."""
        base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        for step in count():
            if self.elapsed >= self.seconds:
                return
            rate = self.rate(step)
            for optimizer, rates in zip(optimizers, base, strict=True):
                for group, lr in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = lr * rate
            yield step


class Batches:
    """Endless batches of showers, in an order drawn anew each epoch.

    Args:
        showers: The showers.
        size: Rows of a batch; all if there are fewer.
        seed: Seed of the order.
    """

    def __init__(self, showers: Showers, size: int, seed: int):
        self.showers, self.size = showers, min(size, len(showers))
        self.particles = showers.particles.astype(np.float32)
        self.rng = np.random.default_rng(seed)

    def at(self, rows: np.ndarray) -> Batch:
        """Rows (B,) as tensors, with the names of :class:`calosim.data.datamodule.ShowerDataset`."""
        arrays = (self.particles[rows], self.showers.pdg[rows].astype(np.int64), self.showers.images[rows], rows)
        return dict(zip(("particles", "pdg", "images", "rows"), map(torch.from_numpy, arrays), strict=True))

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = self.rng.permutation(len(self.showers))
            for start in range(0, len(order) - self.size + 1, self.size):
                yield self.at(order[start : start + self.size])

    def in_order(self, size: int = 512) -> Iterator[Batch]:
        """Every row once."""
        for start in range(0, len(self.showers), size):
            yield self.at(np.arange(start, min(start + size, len(self.showers))))


def descend(
    budget: Budget,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Batch, int], Tensor],
    batches: Batches,
    clip: float,
    after: Callable[[int], None] = lambda step: None,
) -> int:
    """Minimizes a loss of batches until the budget is spent.

    Args:
        budget: The time, and the schedule of the learning rate.
        optimizer: The optimizer.
        loss: From a batch and the number of the step to a loss.
        batches: The batches.
        clip: Norm that gradients are clipped to.
        after: Called with the number of each step, at its end.

    Returns:
        How many steps were made.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    made = 0
    for step, batch in zip(budget.steps(optimizer), batches, strict=False):
        optimizer.zero_grad()
        loss(batch, step).backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        after(step)
        made = step + 1
    return made


def fit_rows(showers: Showers) -> np.ndarray:
    """Evenly spread rows (M,) that standardizations are fitted to."""
    return np.unique(np.linspace(0, len(showers) - 1, min(len(showers), FIT_ROWS)).round().astype(np.int64))


class Peer(ABC):
    """A model of showers given the primary and the photon sum.

    All peers see the same features, see :class:`calosim.representations.FeatureScaler`, the photon sum among them.

    Args:
        detector: The detector.
        lr: The learning rate.

    Attributes:
        module: The network, of which the parameters are counted.
        nll_unit: What :meth:`nll` is in; None where there is no likelihood.
    """

    module: nn.Module
    nll_unit: str | None = None

    def __init__(self, detector: Detector, lr: float):
        self.detector, self.lr = detector, lr

    @property
    def parameters(self) -> int:
        """The number of parameters that a response needs."""
        return sum(p.numel() for p in self.module.parameters())

    def begin(self, minutes: float, seed: int) -> Budget:
        """Seeds a training and starts its clock."""
        budget = Budget(minutes)
        seed_everything(seed, verbose=False)
        return budget

    @abstractmethod
    def fit(self, showers: Showers, minutes: float, seed: int) -> int:
        """Trains for that many minutes of processor time.

        Args:
            showers: The training split.
            minutes: All that is done with the showers takes that long together, standardizations and teachers too.
            seed: Seed of weights, order and noise.

        Returns:
            How many steps were made.
        """

    @abstractmethod
    def generate(self, particles: np.ndarray, pdg: np.ndarray, photon_sum: np.ndarray, seed: int) -> np.ndarray:
        """Answers primaries.

        Args:
            particles: Features with shape (N, 9).
            pdg: PDG codes with shape (N,).
            photon_sum: Photon sums with shape (N,), which the images have.
            seed: Seed of the draws.

        Returns:
            Photon counts with shape (N, nx, ny), integers.
        """

    def both(
        self, particles: np.ndarray, pdg: np.ndarray, photon_sum: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What :meth:`generate` answers, and the same images with sums of the model's own, where it has such."""
        return self.generate(particles, pdg, photon_sum, seed), None

    def nll(self, showers: Showers) -> np.ndarray | None:
        """Negative log-likelihood of each response given its photon sum in :attr:`nll_unit`, shape (N,), if there is one."""
        return None

    def save(self, path: Path) -> None:
        """Writes what :meth:`load` needs."""
        torch.save(self.module.state_dict(), path)

    def load(self, path: Path) -> None:
        """Reads a trained model back."""
        self.module.load_state_dict(torch.load(path, weights_only=True))
        self.module.eval()


class ImagePeer(Peer):
    """What peers have in common whose networks see or make logarithms of counts.

    Subclasses add their networks to ``module``, which holds the ``features``.

    Args:
        detector: The detector.
        lr: The learning rate.
        batch_size: Rows of a training batch.
    """

    module: nn.ModuleDict
    #: Norm that gradients are clipped to.
    clip = 10.0

    def __init__(self, detector: Detector, lr: float, batch_size: int):
        super().__init__(detector, lr)
        self.batch_size = batch_size
        self.module = nn.ModuleDict({"features": FeatureScaler(detector, photon_sum=True)})

    @property
    def context(self) -> int:
        """The number of features."""
        return self.module["features"].width

    def fit_features(self, showers: Showers) -> None:
        """Sets the standardization."""
        some = showers.select(fit_rows(showers))
        self.module["features"].fit(torch.from_numpy(some.particles), torch.from_numpy(some.photon_sum))

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logarithms log(1 + n) of a batch's counts, shape (B, 1, nx, ny), and its features (B, C)."""
        images = batch["images"].float()
        return images.log1p()[:, None], self.module["features"](batch["particles"], images.sum((1, 2)))

    def answered(
        self,
        particles: np.ndarray,
        photon_sum: np.ndarray,
        seed: int,
        noise: int,
        answer: Callable[[Tensor, Tensor], Tensor],
        size: int = 64,
    ) -> np.ndarray:
        """Lets a network answer in batches.

        Args:
            particles: Features with shape (N, 9).
            photon_sum: Photon sums with shape (N,).
            seed: Seed of the noise, which is keyed by row.
            noise: Normal numbers of a row.
            answer: From noise (B, noise) and features (B, C) to images (B, nx, ny).
            size: Rows of a batch.

        Returns:
            What it answered, shape (N, nx, ny), float32.
        """
        self.module.eval()
        images = []
        with torch.no_grad():
            for start in range(0, len(photon_sum), size):
                part = slice(start, min(start + size, len(photon_sum)))
                rows = torch.arange(part.start, part.stop)
                z = rng.normal(rng.row_keys(rows, rng.BASE_STREAM, seed), noise)
                primaries = torch.from_numpy(particles[part].astype(np.float32))
                c = self.module["features"](primaries, torch.from_numpy(photon_sum[part]))
                images.append(answer(z, c).numpy())
        return np.concatenate(images)


class RealImagePeer(ImagePeer):
    """Peers whose images are real numbers with sums of their own, which are brought to the given ones."""

    @abstractmethod
    def photons(self, particles: np.ndarray, photon_sum: np.ndarray, seed: int) -> np.ndarray:
        """Photons of each pixel before rounding, shape (N, nx, ny), to features (N, 9) and photon sums (N,)."""

    def generate(self, particles: np.ndarray, pdg: np.ndarray, photon_sum: np.ndarray, seed: int) -> np.ndarray:
        return with_sum(self.photons(particles, photon_sum, seed), photon_sum)

    def both(
        self, particles: np.ndarray, pdg: np.ndarray, photon_sum: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        images = self.photons(particles, photon_sum, seed)
        return with_sum(images, photon_sum), rounded(images)
