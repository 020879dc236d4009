"""The calibration table of the toy Monte Carlo: what is published, what comes out of ours, and whether it fits.

``python -m calosim.montecarlo.calibration`` prints it, with one row per published number about the ALICE ZN data. Nothing
is left out because it does not fit: such rows say "MISSED" and why.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from calosim.files import atomic_write, markdown_table
from calosim.montecarlo.targets import Target
from calosim.montecarlo.targets_datasets import diversity_targets, mix_targets
from calosim.montecarlo.targets_parts import face_targets, survival_targets

__all__ = ["calibrate", "main", "to_markdown", "to_text"]

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
    parser.add_argument("--seed", type=int, default=1, help="seed of everything (default 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the samples (default 1; about a minute)")
    parser.add_argument("--workers", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--out", type=Path, help="also write the table here, in Markdown")
    options = parser.parse_args(arguments)
    targets = calibrate(options.seed, options.scale, options.workers)
    print(to_text(targets))
    if options.out:
        atomic_write(options.out, to_markdown(targets))


if __name__ == "__main__":
    main()
