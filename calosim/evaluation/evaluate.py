"""Judges a fast simulation on test rows, beside the Monte Carlo's own floor and a trivial model.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from calosim.evaluation.references import Floors, Nearest
from calosim.evaluation.samples import CHANNELS, VARIANT_CODES, Judgement, Work, load_models, monte_carlo, packed
from calosim.evaluation.selection import Selection, check_splits, select_rows, trained_data
from calosim.evaluation.stored import Evaluation
from calosim.evaluation.sums import ACCEPTANCE, PHOTON_SUMS, draw_acceptance
from calosim.evaluation.tests import C2ST, LIKELIHOOD
from calosim.io import atomic_write, check_writable, csv_text, write_json, write_npz
from calosim.metrics.bootstrap import LEAST_PRIMARIES
from calosim.models.checkpoints import weights_of
from calosim.options import Evaluate, FloorOptions, Requantization
from calosim.particles import STUDY_PARTICLES, particle_symbol
from calosim.runs import origin
from calosim.simulation.simulator import FastSimulator, devices_of, pick_device

__all__ = ["JUDGEMENTS", "as_csv", "as_markdown", "evaluate"]

#: All ways of judging, in the order of the tables.
JUDGEMENTS: tuple[Judgement, ...] = (CHANNELS, VARIANT_CODES, PHOTON_SUMS, ACCEPTANCE, C2ST, LIKELIHOOD)

#: Primaries and draws of each that are kept as examples.
EXAMPLES = (6, 4)


def evaluate(options: Evaluate) -> None:
    """Judges a fast simulation on the test split and writes tables and pictures.

    Raises:
        ValueError: If nothing is named to judge, or models, data and settings do not fit together.
    """
    out, models, floors, protocol = options.out, options.models, options.floors, options.protocol
    given = {name: getattr(options, name) for name in ("out", "files", "data", "device", "devices")}
    check_writable(out)
    work = _prepare(options)
    groups = (models, floors, protocol, options.classifier)
    results = origin()
    results |= {"arguments": {**given, **{key: value for some in groups for key, value in asdict(some).items()}}}
    results["weights"] = weights_of([*models.paths, models.acceptance], out)
    results |= _description(work, floors)
    for judgement in JUDGEMENTS:
        found = judgement.compute(work)
        if found is not None:
            results[judgement.key] = found
    _save(Path(out), results, work)


def _prepare(options: Evaluate) -> Work:
    """Chooses the rows, loads models and references; all that can be refused at once comes first."""
    models, protocol = options.models, options.protocol
    judge = options.data or models.paths[0]
    exceptions = Requantization(None, models.requantization_of or ()).by_code()
    where = pick_device(options.device)
    devices_of(where, options.devices)
    data, particle = trained_data(judge, options.files, models.shower)
    check_splits(judge, models.paths, options.data is not None)
    rows = select_rows(data, protocol, particle)
    if not len(rows):
        raise ValueError(f"{', '.join(data.files)}: the {protocol.split} split has no row to evaluate")
    floors = Floors.read(options.floors, data, protocol.split) if options.floors.references else Floors()
    references = floors.references(data, protocol.split, rows) if options.floors.references else {}
    simulator, photons, distances = load_models(
        models, exceptions, data, protocol, where, options.devices, options.quiet
    )
    return Work(
        models,
        protocol,
        options.classifier,
        data,
        particle,
        rows,
        where,
        simulator,
        photons,
        floors,
        references,
        distances,
        options.quiet,
    )


def _description(work: Work, floors: FloorOptions) -> dict[str, Any]:
    """What the results say of how they came about."""
    protocol, rows = work.protocol, work.rows
    found: dict[str, Any] = {
        "seed": protocol.seed,
        "split": protocol.split,
        "shape": work.models.shower,
        "photons": list(work.photons),
        "rows": len(rows),
        "primaries": len(np.unique(rows.primary_ids)),
        "runs": protocol.runs,
        "responses": protocol.responses,
        "data": work.data.describe(),
    }
    if own := work.references.get("floor") or work.references.get("halves"):
        halves = (
            f"{own.eligible.sum()} rows, one half of each primary's {protocol.split} responses, against the other half"
        )
        found |= {"floor_rows_without_their_primary": own.lacking, "floor": floors.floor or halves}
    if own := work.references.get("shape_floor"):
        assert isinstance(own.chooser, Nearest)
        near = {"median": own.chooser.quantile(0.5), "most": own.chooser.quantile(0.95)}
        found["shape_floor"] = {
            "file": floors.shape_floor,
            "rows_without_their_primary": own.lacking,
            "differences": near,
        }
    if work.simulator is not None:
        found |= {"requantization": work.simulator.requantization, "monte_carlo": monte_carlo(work)}
        found |= {"requantization_ws": work.requantization_ws} if work.requantization_ws else {}
    return found


def as_markdown(results: dict[str, Any]) -> str:
    """The results as Markdown tables, the study's particles first.

    Args:
        results: The content of ``evaluation.json``.
    """
    tables = [table for j in JUDGEMENTS if j.key in results for table in j.tables(results[j.key])]
    return "\n\n".join([_head(results), *tables]) + "\n"


def _head(results: dict[str, Any]) -> str:
    """What the tables are of."""
    images = results.get("images", {})
    head = (
        f"{results['rows']} {results['split']} rows of {results['primaries']} primaries; {results['responses']} responses per "
        f"row, {results['runs']} runs; mean ± standard deviation over runs, where there are several"
    )
    some = any(result.get("low") for result in images.values())
    head += f" [95 % interval by bootstrap over primaries, from {LEAST_PRIMARIES} on]." if some else "."
    if images:
        head += " Lower is better, down to the floor: what the Monte Carlo itself reaches."
    if lacking := results.get("floor_rows_without_their_primary"):
        head += f" The floor's sample lacks the primaries of {_rows(lacking)}; others of their type answer there."
    if same := results.get("shape_floor"):
        median, most = (100 * same["differences"][key] for key in ("median", "most"))
        head += (
            f" The floor with the same photon sums answers with sums that differ by {median:.2g} % (median), 95 % of them by "
            f"less than {most:.2g} %"
        )
        without = same["rows_without_their_primary"]
        head += f"; it lacks the primaries of {_rows(without)}." if without else "."
    return head


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def as_csv(results: dict[str, Any]) -> str:
    """All numbers of the results as CSV: candidate, metric, particle type or channel, mean, standard deviation, 95 % interval.

    Areas under the ROC curve and differences of likelihoods have their standard errors in the place of the deviation.

    Args:
        results: The content of ``evaluation.json``.
    """
    rows = [row for j in JUDGEMENTS if j.key in results for row in j.rows(results[j.key])]
    return csv_text(["candidate", "metric", "particle_or_channel", "mean", "std", "low", "high"], rows)


def _examples(rows: Selection, simulator: FastSimulator, seed: int) -> dict[str, np.ndarray]:
    """Monte Carlo and generated responses to some primaries, several draws of each.

    Returns:
        ``examples_reference`` and ``examples_generated`` with shape (P, R, nx, ny), and P ``examples_labels``. Where the
        Monte Carlo has fewer than R responses to a primary, empty images stand for the others.
    """
    test = rows.showers
    codes = [c for c in dict.fromkeys((*STUDY_PARTICLES, *np.unique(test.pdg).tolist())) if (test.pdg == c).any()]
    shown, missing = [], []
    for code in codes[: EXAMPLES[0]]:
        # The primary with most responses: diversity shows.
        of_type = np.flatnonzero(test.pdg == code)
        ids, counts = np.unique(rows.primary_ids[of_type], return_counts=True)
        own = of_type[rows.primary_ids[of_type] == ids[counts.argmax()]]
        shown.append(np.resize(own, EXAMPLES[1]))
        missing.append(np.arange(EXAMPLES[1]) >= len(own))
    picked = np.concatenate(shown)
    reference = np.where(np.concatenate(missing)[:, None, None], 0, test.images[picked]).astype(np.int32)
    total = test.photon_sum[picked] if simulator.photons is None else None
    images = simulator.sample(test.particles[picked], test.pdg[picked], seed, np.arange(len(picked)), total)
    shape = (len(shown), EXAMPLES[1], *test.images.shape[1:])
    labels = [f"{particle_symbol(int(test.pdg[r[0]]))}, {test.particles[r[0], 0]:.0f} GeV" for r in shown]
    return {
        "examples_reference": reference.reshape(shape),
        "examples_generated": images.reshape(shape),
        "examples_labels": np.array(labels),
    }


def _arrays(work: Work, simulator: FastSimulator) -> dict[str, np.ndarray]:
    """The arrays of ``samples.npz``."""
    rows = work.rows
    return {
        **_examples(rows, simulator, work.protocol.seed),
        **{"rows": rows.positions, "pdg": rows.showers.pdg, "primary_ids": rows.primary_ids, "natural": rows.natural},
        **{"reference": work.reference, "reference_profile": work.monte_carlo.profile},
        **packed(work.whole),
    }


def _save(folder: Path, results: dict[str, Any], work: Work) -> None:
    """Writes tables, and the arrays and pictures of images where there are any; prints the tables."""
    pictures: list[Path | None] = []
    if work.simulator is not None:
        arrays = _arrays(work, work.simulator)
        write_npz(folder / Evaluation.SAMPLES, **arrays)
        pictures = _draw(folder, arrays, work)
    if "acceptance" in results:
        draw_acceptance(results["acceptance"], folder / "acceptance.png")
    tables = as_markdown(results)
    atomic_write(folder / Evaluation.NUMBERS, as_csv(results))
    atomic_write(folder / Evaluation.TABLES, tables)
    write_json(folder / Evaluation.RECORD, results)
    print(tables)
    names = ", ".join((Evaluation.TABLES, Evaluation.NUMBERS, Evaluation.RECORD))
    print(f"Tables: {folder}: {names}")
    if drawn := [str(path) for path in pictures if path]:
        print(f"Pictures: {', '.join(drawn)}")


def _draw(folder: Path, arrays: dict[str, np.ndarray], work: Work) -> list[Path | None]:
    """Draws responses to some primaries, Monte Carlo above and generated below, and the channel distributions."""
    from calosim.plots import channel_histograms, image_rows

    detector = work.rows.showers.geometry
    above, below = (
        arrays[f"examples_{side}"][:5, :2].reshape(-1, *detector.shape) for side in ("reference", "generated")
    )
    labels = np.repeat(arrays["examples_labels"][:5], 2).tolist()
    generated = arrays["chain_channels" if "chain_channels" in arrays else "shape_channels"][0, :, 0]
    return [
        image_rows(above, below, labels, folder / "responses.png"),
        channel_histograms(arrays["reference"], generated, detector.channel_names(), folder / "channels.png"),
    ]
