"""Judges a fast simulation on test rows, beside the Monte Carlo's own floor and a trivial model.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calosim import __version__
from calosim.data.datamodule import RootDataModule, describe
from calosim.evaluation.definitions import TITLES
from calosim.evaluation.references import Floors, Nearest, Reference
from calosim.evaluation.requantization import best_requantizations
from calosim.evaluation.samples import Answers, Candidate, ask, first_answers, measure, metric_intervals, packed_answers
from calosim.evaluation.selection import Selection, check_splits, select_rows, trained_data
from calosim.evaluation.stored import Evaluation
from calosim.evaluation.sums import draw_acceptance, judge_acceptance, photon_report
from calosim.evaluation.tables import as_csv, as_markdown
from calosim.evaluation.tests import judge_by_classifier, judge_by_likelihood
from calosim.evaluation.variants import measure_variants
from calosim.io import atomic_write, check_writable, write_json, write_npz
from calosim.models.checkpoints import weights_of
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.options import ClassifierOptions, Evaluate, FloorOptions, Models, Protocol, Requantization
from calosim.particles import STUDY_PARTICLES, particle_symbol
from calosim.runs import git_hash
from calosim.simulation.parallel import devices_of
from calosim.simulation.simulator import FastSimulator, pick_device

__all__ = ["evaluate"]

#: Photon sums that each model draws for a row.
SUMS_PER_ROW = 50

#: Primaries and draws of each that are kept as examples.
EXAMPLES = (6, 4)


def evaluate(options: Evaluate) -> None:
    """Judges a fast simulation on the test split and writes tables and pictures.

    Raises:
        ValueError: If nothing is named to judge, or models, data and settings do not fit together.
    """
    out, models, floors, protocol = options.out, options.models, options.floors, options.protocol
    given = {name: getattr(options, name) for name in ("out", "files", "data", "device", "devices")}
    judge = options.data or models.paths[0]
    check_writable(out)
    work = _prepare(models, judge, options.files, options.data is not None, protocol, options.device, options.devices)
    others = Floors()
    if floors.references:
        others = Floors.read(floors, work.data, protocol.split)
        work.references.update(others.references(work.data, protocol.split, work.rows))
    groups = (models, floors, protocol, options.classifier)
    results: dict[str, Any] = {"calosim": __version__, "git": git_hash()}
    results |= {"arguments": {**given, **{key: value for some in groups for key, value in asdict(some).items()}}}
    results["weights"] = weights_of([*models.paths, models.acceptance], out)
    results |= _description(work, floors)
    results["photon_sum"] = _judge_sums(work)
    if models.acceptance:
        first = next(iter(work.photons), None)
        results["acceptance"] = judge_acceptance(models.acceptance, first, protocol.split, protocol.seed, work.device)
    images, arrays = (
        ({}, {}) if models.shower is None else _judge_images(work, options.classifier, others, options.quiet)
    )
    _save(Path(out), results | images, arrays, work)


@dataclass(frozen=True)
class _Work:
    """What is judged on what: loaded models, the judged rows, and what answers beside the models."""

    models: Models
    protocol: Protocol
    device: torch.device
    devices: int
    exceptions: dict[int, int]
    photons: dict[str, PhotonSum]
    data: RootDataModule
    particle: int | None
    rows: Selection
    references: dict[str, Reference]

    def eligible(self, name: str) -> np.ndarray:
        """The rows on which a candidate, by its short name, may be judged, shape (N,)."""
        everywhere = np.ones(len(self.rows), dtype=bool)
        return self.references[name].eligible if name in self.references else everywhere


def _prepare(
    models: Models, judge: str, files: list[str] | None, given: bool, protocol: Protocol, device: str, devices: int
) -> _Work:
    """Loads data and photon-sum models and chooses the rows; all that can be refused at once comes first."""
    exceptions = Requantization(None, models.requantization_of or ()).by_code()
    where = pick_device(device)
    devices_of(where, devices)
    data, particle = trained_data(judge, files, models.shower)
    check_splits(judge, models.paths, given)
    photons = {run: PhotonSum.load(run, where) for run in models.photons or []}
    rows = select_rows(data, protocol, particle)
    if not len(rows):
        raise ValueError(f"{', '.join(data.files)}: the {protocol.split} split has no row to evaluate")
    return _Work(models, protocol, where, devices, exceptions, photons, data, particle, rows, {})


def _description(work: _Work, floors: FloorOptions) -> dict[str, Any]:
    """What the results say of how they came about."""
    protocol, rows = work.protocol, work.rows
    found: dict[str, Any] = {
        "seed": protocol.seed,
        "split": protocol.split,
        "shape": work.models.shower,
        "photons": list(work.photons),
        "rows": len(rows),
        "inputs": len(np.unique(rows.inputs)),
        "runs": protocol.runs,
        "responses": protocol.responses,
        "data": describe(work.data),
    }
    if own := work.references.get("floor") or work.references.get("halves"):
        halves = (
            f"{own.eligible.sum()} rows, one half of each input's {protocol.split} responses, against the other half"
        )
        found |= {"floor_rows_without_their_input": own.lacking, "floor": floors.floor or halves}
    if own := work.references.get("shape_floor"):
        assert isinstance(own.chooser, Nearest)
        near = {"median": own.chooser.quantile(0.5), "most": own.chooser.quantile(0.95)}
        found["shape_floor"] = {
            "file": floors.shape_floor,
            "rows_without_their_input": own.lacking,
            "differences": near,
        }
    return found


def _judge_sums(work: _Work) -> dict[str, dict[str, dict[str, float]]]:
    """Photon sums that models and references draw, against the true ones."""
    showers, seed = work.rows.showers, work.protocol.seed
    numbers = np.arange(len(work.rows) * SUMS_PER_ROW)
    particles = torch.from_numpy(showers.particles).to(work.device, torch.float32)
    sums: dict[str, np.ndarray] = {}
    for run, model in work.photons.items():
        parts = [
            model.sample(particles[part // SUMS_PER_ROW], seed, torch.from_numpy(part).to(work.device)).cpu().numpy()
            for part in np.array_split(numbers, max(1, len(numbers) // 65536))
        ]
        sums[f"{model.head.name} ({run})"] = np.concatenate(parts)
    for name, reference in work.references.items():
        if name == "shape_floor":  # is given the sums
            continue
        sums[name] = reference.photon_sums(numbers // SUMS_PER_ROW, seed, numbers)
    report, true_sum = {}, showers.photon_sum
    for name, drawn in sums.items():
        eligible = work.eligible(name)
        some = (
            drawn.reshape(-1, SUMS_PER_ROW)[eligible],
            true_sum[eligible],
            showers.pdg[eligible],
            work.rows.inputs[eligible],
        )
        called = "floor of halves" if name == "halves" else name
        report[called] = photon_report(*some, work.protocol.resamples)
    return report


def _judge_images(
    work: _Work, classifier: ClassifierOptions, others: Floors, quiet: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Images that simulation and references answer with, against the Monte Carlo's.

    Returns:
        Results: ``requantization``, ``images`` by candidate, the ``monte_carlo`` itself, and tests; and the arrays of
        ``answers.npz``.
    """
    rows, protocol = work.rows, work.protocol
    test, detector = rows.showers, rows.showers.geometry
    simulator, results = _simulator(work, quiet)
    answers = ask(test, _candidates(work, simulator), protocol.runs, protocol.responses, quiet=quiet)
    # The Monte Carlo itself: channels to compare with, and its centers' own offsets.
    itself = ask(test, {"": lambda run, n: test.images[n]}, runs=1, responses=1, quiet=True)[""]
    reference = itself.channels[0, :, 0]

    def measured(answer: Answers, eligible: np.ndarray) -> dict[str, Any]:
        data = {"reference": reference[eligible], "pdg": test.pdg[eligible], "inputs": rows.inputs[eligible]}
        some, natural = answer.of(eligible), rows.natural[eligible]
        found = measure(some, **data, detector=detector, natural=natural)
        return found | metric_intervals(some, found["mean"], data, natural, detector, protocol.resamples)

    eligible = {title: work.eligible(name) for name, title in TITLES.items()}
    results["images"] = {title: measured(answer, eligible[title]) for title, answer in answers.items()}
    results["monte_carlo"] = measured(itself, np.ones(len(rows), dtype=bool))["mean"]
    if classifier.classifier:
        results |= _judge_by_tests(work, simulator, classifier, others, quiet)
    # Answers to a part of the rows cannot be compared row by row.
    whole = {title: answer for title, answer in answers.items() if eligible[title].all()}
    if protocol.variants:
        results["variants"] = measure_variants(simulator, rows, protocol, whole, reference)
    return results, {
        **_examples(rows, simulator, protocol.seed),
        **{"rows": rows.positions, "pdg": test.pdg, "inputs": rows.inputs, "natural": rows.natural},
        **{"reference": reference, "reference_profile": itself.profile},
        **packed_answers(whole),
    }


def _judge_by_tests(
    work: _Work, simulator: FastSimulator, options: ClassifierOptions, others: Floors, quiet: bool
) -> dict[str, Any]:
    """Tests of the simulation by ``classifier`` and ``likelihood``, on rows of their own: metrics may be of fewer."""
    wanted = replace(work.protocol, rows=options.classifier_rows, rows_of_each=None)
    rows = select_rows(work.data, wanted, work.particle)
    models = _candidates(replace(work, rows=rows, references={}), simulator)
    images = {title: first_answers(model, len(rows), wanted.responses, title, quiet) for title, model in models.items()}
    floors = others.simulated(rows)
    return {
        "classifier": judge_by_classifier(images, rows, floors, options, wanted.seed, quiet),
        "likelihood": judge_by_likelihood(simulator, rows, images[TITLES["shape"]], floors, wanted.seed, quiet),
    }


def _simulator(work: _Work, quiet: bool) -> tuple[FastSimulator, dict[str, Any]]:
    """The fast simulation; and its noise removal for the results, with the distances by which it was chosen."""
    models, protocol = work.models, work.protocol
    shape, results = str(models.shower), {}
    methods = dict(work.exceptions)
    if models.requantization == "best":
        rows = protocol.rows_of_each or protocol.rows or 1000
        best, results["requantization_ws"] = best_requantizations(
            ShowerModel.load(shape, work.device), work.data, rows, protocol.seed, quiet
        )
        methods = best | methods
    elif models.requantization is not None:
        methods |= {0: models.requantization}
    simulator = FastSimulator.load(shape, next(iter(work.photons), None), methods, work.device, devices=work.devices)
    return simulator, {**results, "requantization": simulator.requantization}


def _candidates(work: _Work, simulator: FastSimulator) -> dict[str, Candidate]:
    """What answers the rows, by title: the simulation with the true photon sums and with its own, and the references."""
    rows, seed, responses = work.rows, work.protocol.seed, work.protocol.responses
    showers = rows.showers

    def generated(photon_sum: np.ndarray | None) -> Candidate:
        def images(run: int, numbers: np.ndarray) -> np.ndarray:
            row = numbers // responses
            total = None if photon_sum is None else photon_sum[row]
            # A row's draws are keyed by where it is in the data, so that models of all and of one particle share them.
            keys = rows.positions[row] * responses + numbers % responses
            return simulator.sample(showers.particles[row], showers.pdg[row], seed + run, keys, total, batch_size=1024)

        return images

    def drawn(reference: Reference) -> Candidate:
        return lambda run, numbers: reference.answers(numbers // responses, seed + run, numbers)

    candidates = {"shape": generated(showers.photon_sum)}
    if simulator.photons is not None:
        candidates["chain"] = generated(None)
    candidates |= {name: drawn(reference) for name, reference in work.references.items()}
    return {title: candidates[name] for name, title in TITLES.items() if name in candidates}


def _examples(rows: Selection, simulator: FastSimulator, seed: int) -> dict[str, np.ndarray]:
    """Monte Carlo and generated responses to some primaries, several draws of each.

    Returns:
        ``examples_reference`` and ``examples_generated`` with shape (P, R, nx, ny), and P ``examples_labels``. Where the
        Monte Carlo has fewer than R responses to a primary, dark images stand for the others.
    """
    test = rows.showers
    codes = [c for c in dict.fromkeys((*STUDY_PARTICLES, *np.unique(test.pdg).tolist())) if (test.pdg == c).any()]
    shown, missing = [], []
    for code in codes[: EXAMPLES[0]]:
        # The input with most responses: diversity shows.
        of_type = np.flatnonzero(test.pdg == code)
        ids, counts = np.unique(rows.inputs[of_type], return_counts=True)
        own = of_type[rows.inputs[of_type] == ids[counts.argmax()]]
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


def _save(folder: Path, results: dict[str, Any], arrays: dict[str, np.ndarray], work: _Work) -> None:
    """Writes tables, and the arrays and pictures of images where there are any; prints the tables."""
    if arrays:
        write_npz(folder / Evaluation.ANSWERS, **arrays)
    pictures = _draw(folder, arrays, work) if arrays else []
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


def _draw(folder: Path, arrays: dict[str, np.ndarray], work: _Work) -> list[Path | None]:
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
