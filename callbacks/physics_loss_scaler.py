"""Weights the losses of each row by how diverse the responses to its primary are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray

from calosim.io import atomic_write
from calosim.metrics.conditional import diversity
from calosim.particles import particle_name

__all__ = ["PhysicsLossScaler"]

Mode = Literal["inverted", "reciprocal"]
Scope = Literal["physics", "all"]
_KEYS: dict[str, str] = {"physics": "physics_weight", "all": "loss_weight"}


class PhysicsLossScaler(pl.Callback):
    r"""Puts a weight for every row into the training batches, small where responses to the same input differ much.

    The diversity :math:`f` of every unique input of the training split is computed once, when the fit starts, and scaled
    to [0, 1] (see :func:`calosim.metrics.conditional.diversity`). Inputs with one response have none; they get the mean of their
    particle type, weighted by responses as published. Row weights are

    .. math:: w = 1 - f \quad \text{(inverted)} \qquad \text{or} \qquad w = \frac{1}{f + \epsilon} \quad \text{(reciprocal)}

    divided by their mean over the training rows, so that the scaler moves weight between rows and leaves loss weights
    and learning rate their meaning. All processes compute the same from the same rows, also when a run is resumed.
    What was computed is written to ``diversity.csv`` in the run folder.

    Expects of the module a training step that weights its losses by ``batch["physics_weight"]`` or
    ``batch["loss_weight"]``, which it declares in ``row_weights``. Validation losses are not weighted.

    Args:
        mode: ``inverted`` or ``reciprocal``.
        scope: Weight ``physics`` losses (channels, shower center) only, or ``all`` losses, distillation included.
        epsilon: :math:`\epsilon` of the reciprocal weights.
        quantile: The quantile of diversities over inputs that is scaled to 1; below 1, so that a single row with a
            hundred thousand photons does not set the scale.

    Raises:
        ValueError: If an argument is out of range.

    References:
        | Inverse Autoregressive Flows for Zero Degree Calorimeter fast simulation (Majerz et al., 2025),
          https://arxiv.org/abs/2512.20346
        | SDI-GAN: Selectively Increasing Diversity of Simulations (Dubinski et al., 2023)
    """

    def __init__(
        self, mode: Mode = "inverted", scope: Scope = "physics", epsilon: float = 0.1, quantile: float = 0.99
    ) -> None:
        for name, value, choices in (("mode", mode, get_args(Mode)), ("scope", scope, get_args(Scope))):
            if value not in choices:
                raise ValueError(f"PhysicsLossScaler: expected {name} to be {' or '.join(choices)}, got {value!r}")
        if not epsilon > 0 or not 0 < quantile <= 1:
            raise ValueError(
                f"PhysicsLossScaler: expected a positive epsilon and a quantile in (0, 1], got {epsilon} and {quantile}"
            )
        self.mode, self.scope, self.epsilon, self.quantile = mode, scope, epsilon, quantile
        self.weights = torch.empty(0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Computes the weights of all training rows and records them.

        Raises:
            ValueError: If the module has no use for these weights.
        """
        used = getattr(pl_module, "row_weights", ())
        if _KEYS[self.scope] not in used:
            raise ValueError(
                f"PhysicsLossScaler: {type(pl_module).__name__} uses no {_KEYS[self.scope]} (scope {self.scope}); expected "
                "a student with a channel or center weight, or scope all"
            )
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        rows, inputs = datamodule.rows("train"), datamodule.primary_ids("train")
        pdg = datamodule.arrays["pdg"][rows]
        f = row_diversity(datamodule.arrays["images"], rows, inputs, pdg, self.quantile)
        weights = 1 - f if self.mode == "inverted" else 1 / (f + self.epsilon)
        weights /= weights.mean()
        table = np.ones(int(rows[-1]) + 1, dtype=np.float32)
        table[rows] = weights
        self.weights = torch.from_numpy(table).to(pl_module.device)
        if trainer.is_global_zero:
            atomic_write(Path(trainer.default_root_dir) / "diversity.csv", _report(inputs, pdg, f, weights))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Puts the rows' weights into the batch, shape (B,)."""
        batch[_KEYS[self.scope]] = self.weights[batch["rows"]]


class _Rows:
    """Some rows of a memory-mapped array, read when they are asked for."""

    def __init__(self, array: NDArray, rows: NDArray) -> None:
        self.array, self.rows = array, rows
        self.shape = (len(rows), *array.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: NDArray) -> NDArray:
        return self.array[self.rows[index]]


def row_diversity(images: NDArray, rows: NDArray, inputs: NDArray, pdg: NDArray, quantile: float) -> NDArray:
    """The diversity of each row's input, in [0, 1].

    Args:
        images: Photon counts of all rows with shape (N, nx, ny), also memory-mapped.
        rows: The rows in question, shape (M,).
        inputs: Their unique-input numbers, shape (M,).
        pdg: Their PDG codes, shape (M,).
        quantile: See :class:`PhysicsLossScaler`.

    Returns:
        Values with shape (M,); inputs with one response get their particle type's mean, or that of all where the type
        has no other inputs.
    """
    _, group, counts = np.unique(inputs, return_inverse=True, return_counts=True)
    several = counts[group] > 1
    f = np.zeros(len(rows))
    if not several.any():
        return f
    # Inputs with one response must not set the lower end of the scale.
    found = diversity(_Rows(images, rows[several]), inputs[several], normalized=True, quantile=quantile)  # type: ignore[arg-type]
    f[several] = found.value[np.searchsorted(found.primary_id, inputs[several])]
    for code in np.unique(pdg[~several]):
        alike = several & (pdg == code)
        f[~several & (pdg == code)] = f[alike if alike.any() else several].mean()
    return f


def _report(inputs: NDArray, pdg: NDArray, f: NDArray, weights: NDArray) -> str:
    """One line for each input, as CSV."""
    ids, first, counts = np.unique(inputs, return_index=True, return_counts=True)
    lines = ["input,particle,responses,diversity,weight"]
    lines += [
        f"{i},{particle_name(int(pdg[k]))},{n},{f[k]:.6g},{weights[k]:.6g}"
        for i, k, n in zip(ids, first, counts, strict=True)
    ]
    return "\n".join(lines) + "\n"
