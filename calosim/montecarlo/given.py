"""Responses to the primaries of a file, or of those of its rows that a training holds out."""

from __future__ import annotations

from typing import Literal

import numpy as np

from calosim.data.primaries import read_primaries
from calosim.data.reading import checked_pieces, sources
from calosim.data.recipe import read_recipe
from calosim.data.record import Showers
from calosim.data.root import Writer
from calosim.data.splits import split_rows
from calosim.montecarlo.matching import simulate_matched
from calosim.montecarlo.simulate import distinct_primaries

__all__ = ["match_to_file", "primaries_of_file"]

#: Rows of a file that are in memory at once.
_PIECE = 4096
#: Images without pixels, for rows whose responses do not matter.
_NONE = (0, 0)


def primaries_of_file(file: str, split: Literal["test", "val"] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The distinct primaries of a file.

    Args:
        file: ROOT or CSV, see :func:`calosim.data.primaries.read_primaries`.
        split: Only those that a training holds out by default, to test or to validate.

    Returns:
        Features (n, 9) and PDG codes (n,).

    Raises:
        ValueError: If the file is bad, or has no row of that split.
    """
    particles, pdg = read_primaries(file)
    rows = _rows_of(Showers(particles, pdg, np.zeros((len(pdg), *_NONE), np.int16), "zn"), split, file)
    return distinct_primaries(particles[rows], pdg[rows])


def match_to_file(
    file: str,
    out: str,
    detector: str,
    responses: int,
    keep: int,
    seed: int,
    split: Literal["test", "val"] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> str:
    """Writes responses with the photon sums of a file's rows, see :func:`simulate_matched`, in constant memory.

    Args:
        file: Showers in any form that :func:`calosim.data.read` takes.
        out: The ROOT file to write.
        detector: The detector that both are of.
        responses: Mean number of responses per primary to choose from.
        keep: Responses that are wanted for each row.
        seed: The seed.
        split: Only for the rows that a training holds out by default.
        workers: Threads.
        progress: Whether to show a progress bar.

    Returns:
        A line about what was written, and how near the sums are.

    Raises:
        ValueError: If the file is bad, has no row of that split, or was simulated with the same seed.
    """
    recipe = read_recipe(file)
    if recipe and recipe["settings"].get("seed") == seed:
        raise ValueError(
            f"{file}: was simulated with seed {seed}; expected another seed for responses to hold against it"
        )
    pieces = [
        (piece.particles, piece.pdg, piece.photon_sum)
        for source in sources(file, detector)
        for piece in checked_pieces(source, _PIECE)
    ]
    particles, pdg, photon_sum = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    every = Showers(particles, pdg, np.zeros((len(pdg), *_NONE), np.int16), detector)
    kept = _rows_of(every, split, file)
    rows, written, differences = every.select(kept), 0, []
    matched = simulate_matched(rows, photon_sum[kept], responses, keep, seed, workers=workers, progress=progress)
    with Writer(out, detector) as writer:
        for showers, wanted in matched:
            writer.extend(showers)
            written += len(showers)
            differences.append(np.abs(showers.photon_sum - wanted) / np.maximum(wanted, 1))
        if not written:
            raise ValueError(f"{file}: no response of at least 10 photons to any of its primaries was simulated")
    median, most = 100 * np.quantile(np.concatenate(differences), [0.5, 0.95])
    return (
        f"{out}: {written} responses of {rows.geometry.title} for {len(rows)} rows, up to {keep} each; their photon sums "
        f"differ by {median:.2g} % (median), 95 % of them by less than {most:.2g} %"
    )


def _rows_of(showers: Showers, split: Literal["test", "val"] | None, file: str) -> np.ndarray:
    """The rows of a split, all if None."""
    if split is None:
        return np.arange(len(showers))
    rows = split_rows(showers.inputs, showers.pdg)[split]
    if not len(rows):
        raise ValueError(f"{file}: none of its {len(showers)} rows is in the {split} split; expected more primaries")
    return rows
