r"""Whether a primary leaves a response at all: the probability of at least ten photons, asked before anything else.

References:
    | AliceO2, Detectors/ZDC/fastsimulation: a classifier decides which primaries are simulated
    | Verification of forecasts expressed in terms of probability (Brier, 1950)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from calosim import rng
from calosim.models.base import CalosimModule, evaluating
from calosim.models.uncertainty import MASS, SPOT, Ensemble, PiecewiseLinear
from calosim.representations.features import FeatureScaler

__all__ = ["Acceptance"]


class Acceptance(CalosimModule):
    r"""Networks for :math:`P(N \geq 10 \mid \text{primary})`, trained on attempts with and without a response.

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        min_photons: Photons that make a response.
        hidden: Widths of the hidden layers.
        bins: Bins of the mass and the spot, see :class:`~calosim.models.uncertainty.PiecewiseLinear`; 0 for none.
        members: Networks from other random weights, whose mean probability counts.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.
    """

    #: What batches need not hold.
    with_images = False

    loss_name, loss_unit = "cross-entropy", "nats"

    def __init__(
        self,
        detector: str = "zn",
        min_photons: int = 10,
        hidden: tuple[int, ...] = (128, 128),
        bins: int = 64,
        members: int = 2,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(
            detector,
            optimizer,
            scheduler,
            min_photons=min_photons,
            hidden=list(hidden),
            bins=bins,
            members=members,
        )
        if bins < 0:
            raise ValueError(f"expected bins of at least 0, got {bins}")
        self.min_photons = min_photons
        self.features = FeatureScaler(self.detector)
        self.encoding = PiecewiseLinear(self.features.width, (MASS, *SPOT) if bins else (), bins)
        self.networks = Ensemble((self.encoding.width, *hidden, 1), members)

    def setup(self, stage: str) -> None:
        """Fits standardizations and bins on the training split, unless a checkpoint brought them.

        Raises:
            ValueError: If all of its rows are empty, or none.
        """
        super().setup(stage)
        if stage != "fit" or bool(self.features.fitted):
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = data.rows("train")
        share = float((data.arrays["photon_sum"][rows] >= self.min_photons).mean())
        if not 0 < share < 1:
            raise ValueError(
                f"{', '.join(data.files)}: expected rows with {self.min_photons} photons and rows without, to learn which "
                f"primaries leave a response, got {100 * share:.0f} % with; use `calosim simulate --keep_empty` and "
                "--data.min_photons 0"
            )
        particles = torch.from_numpy(data.arrays["particles"][rows])
        self.features.fit(particles)
        self.encoding.fit(self.features(particles))

    def _losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropies of the members, (members, B)."""
        logits = self.networks(self.encoding(self.features(batch["particles"])))[..., 0]
        nonempty = (batch["photon_sum"] >= self.min_photons).to(logits)
        return F.binary_cross_entropy_with_logits(logits, nonempty.expand_as(logits), reduction="none")

    def loss(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """The mean cross-entropy of the members."""
        return self._losses(batch).mean(0)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Minimizes the cross-entropy per row, a proper score: its best is the true probability."""
        loss = self.finite(self._losses(batch), batch).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["rows"]), sync_dist=True)
        return loss

    def probability(self, particles: Tensor) -> Tensor:
        """The probability of a response.

        Args:
            particles: Features with shape (B, 9).

        Returns:
            Numbers in (0, 1) with shape (B,), float64: a row's does not depend on the rows computed beside it.
        """
        with evaluating(self):
            columns = self.encoding(self.features(particles)).double()
            members = [self.networks.member(k, columns) for k in range(self.networks.members)]
            return torch.stack([logits[:, 0].sigmoid() for logits in members]).mean(0)

    def sample(self, particles: Tensor, seed: int, rows: Tensor) -> Tensor:
        """Decides for each row whether there is a response.

        Args:
            particles: Features with shape (B, 9).
            seed: Seed of the draws.
            rows: Row numbers with shape (B,), int64; with the seed they key the draws.

        Returns:
            Booleans with shape (B,).
        """
        keys = rng.row_keys(rows, rng.ACCEPTANCE_STREAM, seed)
        return rng.uniform(keys, 1)[:, 0].double() < self.probability(particles)

    def predict_step(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """The probability of each row."""
        return {"probability": self.probability(batch["particles"]), "rows": batch["rows"]}
