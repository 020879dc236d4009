"""The calibration table of the toy Monte Carlo: what is published, what comes out of ours, and whether it fits.

``python -m calosim.montecarlo.calibration`` prints it, with one row per published number about the ALICE ZN data. Nothing
is left out because it does not fit: such rows say "MISSED" and why.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from calosim.io import atomic_write, markdown_table
from calosim.montecarlo.targets import Target
from calosim.montecarlo.targets_datasets import diversity_targets, mix_targets
from calosim.montecarlo.targets_parts import face_targets, survival_targets

__all__ = ["calibrate", "main", "over_seeds", "to_markdown", "to_text"]

#: Why a target is missed, or may be with another seed; printed where it is.
_REASONS: dict[str, str] = {
    "images: zero pixels of ZP, %": "only ZN is calibrated: ZP has ZN's primaries and line, and invented light yields",
    "images: zero pixels, %": "showers as wide as the pictured ones, at photon sums with the published median",
    "feature means: px": "a fluctuation of the published sample's inputs, imitated by a crossing angle; band within two errors",
    "feature means: py": "a fluctuation of the published sample's inputs, imitated by a crossing angle; band within two errors",
    "feature means: pz": "a fluctuation of the published sample's inputs, imitated by uneven sides; band within our error",
    "neutrons on the face: lit pixels at 698 photons": "a narrow one; the same picture decodes to 269 lit pixels",
}


def calibrate(seed: int = 1, scale: float = 1.0, workers: int = 2) -> list[Target]:
    """Simulates what the table needs, about 250,000 ZN responses, and compares.

    Args:
        seed: The seed of everything.
        scale: Size of the samples; below 1 for a quicker, coarser table.
        workers: Threads.

    Returns:
        The table's rows.
    """
    targets = mix_targets(seed, scale, workers)
    targets += diversity_targets(seed, scale, workers)
    targets += face_targets(seed, scale)
    targets += survival_targets(seed, scale)
    return sorted(targets, key=lambda t: [u.group for u in targets].index(t.group))


def over_seeds(seeds: int, first: int = 1, scale: float = 1.0, workers: int = 2) -> list[Target]:
    """The table of the mean over seeds: what holds at one seed alone is no property of the Monte Carlo.

    Args:
        seeds: How many.
        first: The first of them; the others follow it.
        scale: Size of each seed's samples.
        workers: Threads.

    Returns:
        The table's rows; values are means, errors those of the means, from the spread over seeds where there are several.
    """
    tables = [calibrate(seed, scale, workers) for seed in range(first, first + seeds)]
    if seeds == 1:
        return tables[0]
    return [_mean([table[k] for table in tables]) for k in range(len(tables[0]))]


def _mean(targets: list[Target]) -> Target:
    """One row of several seeds; a seed without a value (no such particle) is left out."""
    values = np.array([target.ours for target in targets])
    values = values[np.isfinite(values)]
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    ours = values.mean() if len(values) else np.nan
    return replace(targets[0], ours=float(ours), error=float(error))


_HEADER = ("quantity", "published", "ours", "+-", "band", "verdict", "remark")


def _row(target: Target) -> tuple[str, ...]:
    band = "" if target.band is None else f"{target.band[0]:.4g} to {target.band[1]:.4g}"
    error = "" if not np.isfinite(target.error) else f"{target.error:.2g}"
    note = target.note
    if target.verdict == "MISSED":
        note = "; ".join(x for x in (note, _REASONS.get(f"{target.group}: {target.name}", "")) if x)
    return target.name, target.published, f"{target.ours:.4g}", error, band, target.verdict, note


def to_text(targets: list[Target]) -> str:
    """The table for a terminal."""
    rows = [_row(t) for t in targets]
    widths = [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        return "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip()

    lines, group = [line(_HEADER)], ""
    for target, row in zip(targets, rows, strict=True):
        if target.group != group:
            group = target.group
            lines += ["", group]
        lines.append(line(row))
    return "\n".join([*lines, "", _summary(targets)])


def to_markdown(targets: list[Target]) -> str:
    """The table in Markdown."""
    table = markdown_table(("group", *_HEADER), [(t.group, *_row(t)) for t in targets])
    return f"# Calibration of the toy Monte Carlo\n\n{table}\n\n{_summary(targets)}\n"


def _summary(targets: list[Target]) -> str:
    count = {v: sum(t.verdict == v for t in targets) for v in ("inside", "MISSED", "shown")}
    return f"{count['inside']} inside their band, {count['MISSED']} missed, {count['shown']} shown without a band"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table and, if asked, writes it in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m calosim.montecarlo.calibration", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--seeds", type=int, default=8, help="how many seeds; their mean is judged (default 8)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of each seed's samples (default 1)")
    parser.add_argument("--workers", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--out", type=Path, help="also write the table here, in Markdown")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"expected at least one seed, got {options.seeds}")
    targets = over_seeds(options.seeds, options.seed, options.scale, options.workers)
    print(to_text(targets))
    if options.out:
        atomic_write(options.out, to_markdown(targets))


if __name__ == "__main__":
    main()
