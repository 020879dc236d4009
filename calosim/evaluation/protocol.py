"""The settings of an evaluation that travel together: which rows, and how often they are answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Protocol"]


@dataclass(frozen=True)
class Protocol:
    """Which rows a simulation is judged on, and how often it answers them.

    Several responses are generated for every row, several times over; what is reported are means and standard deviations
    over those runs.

    Attributes:
        split: The rows to judge on; choices between models are made on val, results are reported on test.
        runs: Repetitions with other seeds.
        responses: Responses generated for every row in each run.
        rows: About that many rows, spread over particle types and inputs, up to five of an input; all if not given.
        rows_of_each: In addition up to about that many rows of each particle type, for its own column; "all" stays with the
            natural mix.
        seed: Seed of the draws.

    Raises:
        ValueError: If one of the numbers is below 1.

    References:
        | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
          https://arxiv.org/abs/2608.12795
    """

    split: Literal["test", "val"] = "test"
    runs: int = 5
    responses: int = 5
    rows: int | None = None
    rows_of_each: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("runs", "responses", "rows", "rows_of_each"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
