"""The settings of an evaluation that travel together: which rows, how often they are answered, and who judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calosim.metrics.variants import VARIANTS

__all__ = ["ClassifierOptions", "FloorOptions", "Protocol"]


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
        resamples: Bootstrap resamples of primaries, for the 95 % intervals of metrics; 0: no intervals.
        variants: Metrics as public codes compute them, in a table of their own: some of zdc (m-wojnar/zdc: channel sums not
            rounded, all generations of a row pooled, MAE paired row by row) and zdc-fast-simulations
            (majerzemilia/zdc-fast-simulations: one generation of each row, MAE paired row by row).

    Raises:
        ValueError: If one of the numbers is below 1, resamples are 1 or less than 0, or a variant is unknown.

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
    resamples: int = 1000
    variants: list[str] | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.variants or []) - set(VARIANTS):
            raise ValueError(f"unknown variant {min(unknown)!r}; expected some of {', '.join(VARIANTS)}")
        if self.resamples < 0 or self.resamples == 1:
            raise ValueError(f"expected resamples of 0 or at least 2, got {self.resamples}")
        for name in ("runs", "responses", "rows", "rows_of_each"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")


@dataclass(frozen=True)
class FloorOptions:
    """What stands beside the models.

    Attributes:
        floor: Showers of the same primaries simulated with another seed (``calosim simulate --primaries FILE``). Without
            it, one half of each input's responses answers for the other, on whose rows alone the floor is judged then.
        shape_floor: The same with the photon sums of the judged rows (``calosim simulate --primaries FILE --match_sums 5``):
            the floor of a shower model that is given true photon sums.
        references: Whether the floors and the trivial model are judged too.
    """

    floor: str | None = None
    shape_floor: str | None = None
    references: bool = True


@dataclass(frozen=True)
class ClassifierOptions:
    """Whether and how judges try to tell generated responses from the Monte Carlo's.

    Attributes:
        classifier: Whether the shower model and the full chain take the classifier test, minutes for each; with a floor file
            so does the Monte Carlo itself, as it is and damaged, to show how good the judges are.
        classifier_rows: About that many rows at most take it, of the whole split, whatever else is judged.
        classifier_seeds: Trainings of each judge, each tested on another fifth of the primaries; five test all of them.
        classifier_calochallenge: Whether the CaloChallenge's low-level classifier, trained as there, judges too.

    Raises:
        ValueError: If one of the numbers is below 1.
    """

    classifier: bool = True
    classifier_rows: int = 9000
    classifier_seeds: int = 5
    classifier_calochallenge: bool = False

    def __post_init__(self) -> None:
        for name in ("classifier_rows", "classifier_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
