r"""Judges a fast simulation on test rows, beside the Monte Carlo's own floor and a trivial model.

Protocol of P4: several responses are generated for every test row, several times over; the numbers are means and
standard deviations over those runs. The floor is the Monte Carlo against itself with another seed; the trivial model
answers with a random training response of the same particle type.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from calosim import __version__
from calosim.detectors import Detector
from calosim.evaluation.answers import FULL_CHAIN, SHAPE_ALONE, TITLES, Candidate, ask, measure, packed_answers
from calosim.evaluation.photons import photon_report
from calosim.evaluation.references import reference_pools
from calosim.evaluation.rounding import best_noise_removals
from calosim.evaluation.selection import check_splits, mixed_rows, trained_data
from calosim.evaluation.tables import csv_of, tables_of
from calosim.files import atomic_write, check_writable, to_json
from calosim.models.photons import PhotonSum
from calosim.models.shape import ShapeModule
from calosim.particles import STUDY_PARTICLES, particle_symbol
from calosim.runs import git_hash
from calosim.showers.datamodule import describe
from calosim.showers.record import Showers
from calosim.simulation.simulator import FastSimulator, noise_removals, pick_device

__all__ = ["evaluate"]

#: Primaries and draws of each that are kept as examples.
EXAMPLES = (6, 4)


def evaluate(
    out: str,
    shape: str | None = None,
    photons: list[str] | None = None,
    files: list[str] | None = None,
    data: str | None = None,
    split: Literal["test", "val"] = "test",
    floor: str | None = None,
    runs: int = 5,
    responses: int = 5,
    rows: int | None = None,
    rows_of_each: int | None = None,
    noise_removal: int | Literal["best"] | None = None,
    noise_removal_of: list[str] | None = None,
    references: bool = True,
    seed: int = 1,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Judges a fast simulation on the test split and writes tables and pictures.

    The data set and its split are those that the shape model (else the first photon-sum model) was trained with; a model
    of one particle is judged on that particle's rows.

    Args:
        out: Folder for the results.
        shape: Run folder, checkpoint or ensemble of the shape model; without it only the photon sums are judged.
        photons: Run folders or checkpoints of photon-sum models; the first is used with the shape model, all are compared.
        files: Data files, if they are no longer where the models were trained.
        data: Run folder whose data set and split are used; that of the shape model if not given.
        split: The rows to judge on; choices between models are made on val, results are reported on test.
        floor: Showers of the same primaries simulated with another seed (``calosim simulate --primaries FILE``). Without
            it, one half of each input's responses answers for the other, on whose rows alone the floor is judged then.
        runs: Repetitions with other seeds.
        responses: Responses generated for every row in each run.
        rows: About that many rows, spread over particle types and inputs, up to five of an input; all if not given.
        rows_of_each: In addition up to about that many rows of each particle type, for its own column; "all" stays with the
            natural mix.
        noise_removal: 1 floor, 2 subtract and round, 3 floor and renormalize, 4 subtract, round and renormalize; or best:
            for each particle the one with the smallest Wasserstein distance on validation rows. An ensemble's own by
            default, else 3.
        noise_removal_of: Exceptions by particle, for instance "[neutron=1,k0s=2]".
        references: Whether the floor and the trivial model are judged too.
        seed: Seed of the draws.
        device: auto, cpu, cuda or mps.
        quiet: Show no progress.
    """
    arguments = {key: value for key, value in locals().items() if key != "quiet"}
    for name, value in (("runs", runs), ("responses", responses), ("rows", rows), ("rows_of_each", rows_of_each)):
        if value is not None and value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")
    photons = photons or []
    if shape is None and not photons:
        raise ValueError("nothing to evaluate: name a shape model with --shape or photon-sum models with --photons")
    check_writable(out)
    exceptions = noise_removals(3, noise_removal_of or [])
    where = pick_device(device)
    source, particle = trained_data(data or shape or photons[0], files, shape)
    check_splits(data or shape or photons[0], [m for m in (shape, *photons) if m], data is not None)
    models = {str(p): PhotonSum.load(p, where) for p in photons}
    # All types' rows are chosen, then those of the particle: the same rows whichever model is judged.
    all_inputs, all_pdg = source.inputs(split), source.arrays["pdg"][source.rows(split)]
    chosen, natural = mixed_rows(all_inputs, all_pdg, rows, rows_of_each)
    if particle is not None:
        keep = all_pdg[chosen] == particle
        chosen, natural = chosen[keep], natural[keep]
    test, inputs = source.showers(split, chosen), all_inputs[chosen]
    if not len(test):
        raise ValueError(f"{', '.join(source.files)}: the {split} split has no row to evaluate")
    results: dict[str, Any] = {
        "calosim": __version__,
        "git": git_hash(),
        "arguments": arguments,
        "seed": seed,
        "split": split,
        "shape": shape,
        "photons": list(models),
        "rows": len(test),
        "inputs": len(np.unique(inputs)),
        "runs": runs,
        "responses": responses,
        "data": describe(source),
    }
    draws_per_row = 50
    asked = np.ones(len(test), dtype=bool)  # the rows that the floor is judged on
    pools: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[..., np.ndarray]]] = {}
    if references:
        pools, asked, lacking = reference_pools(source, split, chosen, test, inputs, floor)
        results["floor_rows_without_their_input"] = lacking
        results["floor"] = (
            floor or f"{asked.sum()} rows, one half of each input's {split} responses, against the other half"
        )
    # -- photon sums
    numbers = np.arange(len(test) * draws_per_row)
    sums: dict[str, np.ndarray] = {}
    particles = torch.from_numpy(test.particles).to(where, torch.float32)
    for name, model in models.items():
        parts = [
            model.sample(particles[part // draws_per_row], seed, torch.from_numpy(part).to(where)).cpu().numpy()
            for part in np.array_split(numbers, max(1, len(numbers) // 65536))
        ]
        sums[f"{model.head} ({name})"] = np.concatenate(parts).reshape(len(test), draws_per_row)
    for title, (images, positions) in pools.items():
        drawn_rows = positions(numbers // draws_per_row, seed, numbers)
        distinct, back = np.unique(drawn_rows, return_inverse=True)
        pool_sums = np.concatenate(
            [
                images(part).sum(axis=(1, 2), dtype=np.int64)
                for part in np.array_split(distinct, len(distinct) // 4096 + 1)
            ]
        )
        sums[title] = pool_sums[back.ravel()].reshape(len(test), draws_per_row)
    results["photon_sum"] = {}
    for title, drawn in sums.items():
        rated = asked if title == "floor" else np.ones_like(asked)
        results["photon_sum"][title] = photon_report(drawn[rated], test.photon_sum[rated], test.pdg[rated])
    # -- images
    folder = Path(out)
    if shape is not None:
        methods = {code: method for code, method in exceptions.items() if code}
        if noise_removal == "best":
            chosen_for = rows_of_each or rows or 1000
            best, results["noise_removal_ws"] = best_noise_removals(
                ShapeModule.load(shape, where), source, chosen_for, seed, quiet
            )
            methods = best | methods
        elif noise_removal is not None:
            methods |= {0: noise_removal}
        simulator = FastSimulator.load(shape, photons[0] if photons else None, methods, where)
        results["noise_removal"] = simulator.noise_removal
        true_sum = test.photon_sum

        def generated(full: bool) -> Candidate:
            def images(run: int, numbers: np.ndarray) -> np.ndarray:
                row = numbers // responses
                total = None if full else true_sum[row]
                # A row's draws are keyed by where it is in the data, so that models of all and of one particle share them.
                keys = chosen[row] * responses + numbers % responses
                return simulator.sample(test.particles[row], test.pdg[row], seed + run, keys, total, batch_size=1024)

            return images

        def from_pool(name: str) -> Candidate:
            pool_images, positions = pools[name]
            return lambda run, n: pool_images(positions(n // responses, seed + run, n))

        candidates: dict[str, Candidate] = {SHAPE_ALONE: generated(False)}
        if simulator.photons is not None:
            candidates[FULL_CHAIN] = generated(True)
        candidates |= {TITLES[name]: from_pool(name) for name in pools}
        answers = ask(test, candidates, runs, responses, quiet=quiet)
        # The Monte Carlo itself: channels to compare with, and its centers' own offsets.
        itself = ask(test, {"": lambda run, n: test.images[n]}, runs=1, responses=1, quiet=True)[""]
        reference, detector = itself.channels[0, :, 0], test.geometry
        results["images"] = {}
        for title, answer in answers.items():
            rated = asked if title == TITLES["floor"] else np.ones_like(asked)
            answer = answer._replace(channels=answer.channels[:, rated], offsets=answer.offsets[:, rated])
            results["images"][title] = measure(
                answer, reference[rated], test.pdg[rated], inputs[rated], detector, natural[rated]
            )
        results["monte_carlo"] = measure(itself, reference, test.pdg, inputs, detector, natural)["mean"]
        examples = _examples(test, inputs, simulator, seed)
        # A floor that answers for half of the rows cannot be compared row by row.
        kept = answers if asked.all() else {t: a for t, a in answers.items() if t != TITLES["floor"]}
        atomic_write(
            folder / "answers.npz",
            packed_answers(kept, chosen, test.pdg, inputs, natural, reference, itself.profile, **examples),
        )
        whole = answers[SHAPE_ALONE if simulator.photons is None else FULL_CHAIN].channels[0, :, 0]
        _pictures(folder, detector, reference, whole, **examples)
    atomic_write(folder / "evaluation.csv", csv_of(results))
    tables = tables_of(results)
    atomic_write(folder / "evaluation.md", tables)
    atomic_write(folder / "evaluation.json", to_json(results))
    print(tables)
    print(f"Tables: {folder}/evaluation.md, .csv, .json", end="")
    print(f"\nPictures: {folder}/responses.png, {folder}/channels.png" if shape else "")


def _examples(test: Showers, inputs: np.ndarray, simulator: FastSimulator, seed: int) -> dict[str, np.ndarray]:
    """Monte Carlo and generated responses to some primaries, several draws of each.

    Returns:
        ``examples_reference`` and ``examples_generated`` with shape (P, R, nx, ny), and P ``examples_labels``. Where the
        Monte Carlo has fewer than R responses to a primary, dark images stand for the others.
    """
    codes = [
        code for code in dict.fromkeys((*STUDY_PARTICLES, *np.unique(test.pdg).tolist())) if (test.pdg == code).any()
    ]
    shown, missing = [], []
    for code in codes[: EXAMPLES[0]]:
        # The input with most responses: diversity shows.
        rows = np.flatnonzero(test.pdg == code)
        ids, counts = np.unique(inputs[rows], return_counts=True)
        own = rows[inputs[rows] == ids[counts.argmax()]]
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


def _pictures(
    folder: Path,
    detector: Detector,
    reference: np.ndarray,
    generated: np.ndarray,
    examples_reference: np.ndarray,
    examples_generated: np.ndarray,
    examples_labels: np.ndarray,
) -> None:
    """Responses to some primaries, Monte Carlo above and generated below, and the channel distributions."""
    from calosim.pictures import channel_histograms, image_rows

    above, below = (e[:5, :2].reshape(-1, *detector.shape) for e in (examples_reference, examples_generated))
    image_rows(above, below, np.repeat(examples_labels[:5], 2).tolist(), folder / "responses.png")
    channel_histograms(reference, generated, detector.channel_names(), folder / "channels.png")
