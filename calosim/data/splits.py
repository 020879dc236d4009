"""Which rows train, validate and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

__all__ = ["SPLITS", "Split", "split_rows"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def split_rows(
    inputs: np.ndarray,
    pdg: np.ndarray,
    by: Literal["primary", "response"] = "primary",
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> dict[Split, np.ndarray]:
    """Splits rows into training, validation and test.

    Args:
        inputs: Unique-input number of every row, shape (N,), see :attr:`calosim.data.record.Showers.inputs`.
        pdg: PDG code of every row, shape (N,).
        by: ``primary`` keeps all responses of one input together, so that no input is in two splits, and divides the
            inputs of each particle type separately, so that rare types reach every split; ``response`` divides rows
            regardless of their input, as the published studies did.
        fractions: Shares of training, validation and test; they sum to 1.
        seed: Seed of the division.

    Returns:
        Sorted row numbers of each split; together they hold every row once.

    Raises:
        ValueError: If the fractions do not sum to 1 or are negative.
    """
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-9:
        raise ValueError(f"expected three split fractions that sum to 1, got {tuple(fractions)}")
    rng = np.random.default_rng(seed)

    def divide(items: np.ndarray) -> list[np.ndarray]:
        # Halves round up, so that a type with five inputs has one for validation.
        held = [int(len(items) * f + 0.5) for f in fractions[1:]]
        kept = max(len(items) - sum(held), 0)
        return np.split(rng.permutation(items), [kept, kept + held[0]])

    if by == "response":
        return {name: np.sort(part) for name, part in zip(SPLITS, divide(np.arange(len(inputs))), strict=True)}
    if by != "primary":
        raise ValueError(f"unknown split {by!r}; expected primary or response")
    of_input = np.zeros(int(inputs.max(initial=-1)) + 1, dtype=np.int8)
    for code in np.unique(pdg):
        for k, part in enumerate(divide(np.unique(inputs[pdg == code]))):
            of_input[part] = k
    return {name: np.flatnonzero(of_input[inputs] == k) for k, name in enumerate(SPLITS)}
