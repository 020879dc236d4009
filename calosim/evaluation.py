r"""Judges a fast simulation on test rows, beside the Monte Carlo's own floor and a trivial model.

Protocol of P4: several responses are generated for every test row, several times over; the numbers are means and
standard deviations over those runs. The floor is the Monte Carlo against itself with another seed; the trivial model
answers with a random training response of the same particle type.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from calosim import __version__, draws
from calosim.data import RootDataModule, describe
from calosim.metrics import channel_metrics, wasserstein
from calosim.particles import STUDY_PARTICLES, particle_name, particle_symbol
from calosim.photons import PhotonSum
from calosim.provenance import atomic_write, git_hash
from calosim.rootio import Showers, read
from calosim.simulator import FastSimulator, noise_removals, pick_device

__all__ = ["Pool", "evaluate", "evaluate_run", "photon_report"]

#: Metrics of the table: key, heading, format.
METRICS: tuple[tuple[str, str, str], ...] = (
    ("ws", "WS", ".2f"),
    ("mae_cond", "MAE_cond", ".2f"),
    ("mae_w", "MAE_w", ".2f"),
    ("delta", "δ", ".3f"),
    ("jacc", "JaccErr", ".3f"),
)

#: Nominal contents of the central predictive intervals whose coverage is reported.
INTERVALS = (0.5, 0.68, 0.9, 0.95)

#: Answers for a batch of rows: (run, row numbers with shape (B,)) -> photon images with shape (B, nx, ny).
Candidate = Callable[[int, np.ndarray], np.ndarray]


class Pool:
    """Answers a row with random responses from a pool of Monte Carlo responses that share a key with it.

    With the unique input as key, and a pool simulated with another seed, this is the floor; with the particle type as
    key, and the training split as pool, it is the trivial model.

    Args:
        images: The pool's photon counts with shape (M, nx, ny).
        keys: The pool's keys with shape (M,).
        fallback: A second key with shape (M,), for rows whose first key the pool lacks.
    """

    def __init__(self, images: np.ndarray, keys: np.ndarray, fallback: np.ndarray):
        self.images = images
        self.orders = [np.argsort(k, kind="stable") for k in (keys, fallback)]
        self.sorted = [k[o] for k, o in zip((keys, fallback), self.orders, strict=True)]

    def draw(self, keys: np.ndarray, fallback: np.ndarray, seed: int, rows: np.ndarray) -> np.ndarray:
        """Positions in the pool.

        Args:
            keys: Keys of the rows with shape (B,).
            fallback: Second keys of the rows with shape (B,).
            seed: Seed of the draws.
            rows: Row numbers with shape (B,) that key the draws.

        Returns:
            Positions with shape (B,); any of the pool's where it has neither key.
        """
        row_keys = draws.row_keys(torch.from_numpy(rows), draws.EVALUATION_STREAM, seed)
        u = draws.uniform(row_keys, 1)[:, 0].numpy().astype(np.float64)
        position = (u * len(self.images)).astype(np.int64)
        for wanted, order, present in zip((fallback, keys), self.orders[::-1], self.sorted[::-1], strict=True):
            low, high = (np.searchsorted(present, wanted, side=s) for s in ("left", "right"))
            found = high > low
            position[found] = order[(low + u * (high - low)).astype(np.int64)[found]]
        return position


def evaluate(
    test: Showers,
    inputs: np.ndarray,
    candidates: dict[str, Candidate],
    runs: int = 5,
    responses: int = 5,
    batch_size: int = 1024,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Computes the published metrics for each candidate.

    Args:
        test: The test rows.
        inputs: Their unique-input numbers with shape (N,).
        candidates: By name, functions of (run, row numbers (B,)) that return generated images (B, nx, ny); the row
            numbers count test rows times ``responses``.
        runs: Repetitions with other seeds.
        responses: Responses generated for every row in each run.
        batch_size: Rows asked for at once.
        quiet: Show no progress.

    Returns:
        For each candidate ``mean`` and ``std`` over runs by metric (``ws_all``, ``mae_cond_gamma``) and ``seconds`` per response.
    """
    detector = test.geometry
    reference = torch.from_numpy(detector.channels(test.images))
    pdg, ids = torch.from_numpy(test.pdg.astype(np.int64)), torch.from_numpy(inputs)
    total = len(candidates) * runs * len(test)
    progress = tqdm(total=total * responses, unit="responses", unit_scale=True, disable=True if quiet else None)
    results: dict[str, dict[str, Any]] = {name: {"runs": [], "seconds": 0.0} for name in candidates}
    with progress:
        for run in range(runs):
            for name, candidate in candidates.items():
                progress.set_description(f"{name}, run {run + 1}/{runs}")
                metrics = channel_metrics(detector)
                begin = time.perf_counter()
                for start in range(0, len(test), batch_size):
                    stop = min(start + batch_size, len(test))
                    images = candidate(run, np.arange(start * responses, stop * responses))
                    channels = torch.from_numpy(detector.channels(images)).view(stop - start, responses, 5)
                    metrics.update(channels, reference[start:stop], pdg[start:stop], ids[start:stop])
                    progress.update((stop - start) * responses)
                results[name]["seconds"] += (time.perf_counter() - begin) / (runs * len(test) * responses)
                results[name]["runs"].append({key: float(value) for key, value in metrics.compute().items()})
    for result in results.values():
        keys = result["runs"][0]
        values = {key: np.array([run[key] for run in result["runs"]]) for key in keys}
        result["mean"] = {key: float(v.mean()) for key, v in values.items()}
        result["std"] = {key: float(v.std(ddof=1)) if runs > 1 else 0.0 for key, v in values.items()}
    return results


def photon_report(samples: np.ndarray, photon_sum: np.ndarray, pdg: np.ndarray) -> dict[str, dict[str, float]]:
    """How well predictive samples of the photon sum agree with the Monte Carlo.

    Args:
        samples: Predictive samples with shape (N, K).
        photon_sum: True photon sums with shape (N,).
        pdg: PDG codes with shape (N,).

    Returns:
        For ``all`` and each particle type: ``rows``; ``mae`` and ``median_error`` (relative) of the predictive median;
        ``rmse`` of the predictive mean; ``w1`` between the distributions of sums; ``coverage_50`` and so on, the share of
        sums inside the central predictive intervals (nominally that percentage), limits included.
    """
    median, mean = np.median(samples, axis=1), samples.mean(axis=1)
    limits = {p: np.quantile(samples, [(1 - p) / 2, (1 + p) / 2], axis=1) for p in INTERVALS}
    report = {}
    for code in (None, *np.unique(pdg)):
        rows = np.ones(len(pdg), dtype=bool) if code is None else pdg == code
        error = np.abs(median - photon_sum)[rows]
        values = {
            "rows": int(rows.sum()),
            "mae": error.mean(),
            "rmse": np.sqrt(np.square(mean - photon_sum)[rows].mean()),
            "median_error": np.median(error / np.maximum(photon_sum[rows], 1)),
            "w1": wasserstein(photon_sum[rows], samples[rows].ravel()),
        }
        for p, (low, high) in limits.items():
            values[f"coverage_{100 * p:.0f}"] = ((low <= photon_sum) & (photon_sum <= high))[rows].mean()
        report["all" if code is None else particle_name(int(code))] = {k: float(v) for k, v in values.items()}
    return report


def evaluate_run(
    out: str,
    shape: str | None = None,
    photons: list[str] | None = None,
    files: list[str] | None = None,
    floor: str | None = None,
    runs: int = 5,
    responses: int = 5,
    rows: int | None = None,
    noise_removal: int = 3,
    noise_removal_of: list[str] | None = None,
    seed: int = 1,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Judges a fast simulation on the test split and writes tables and pictures.

    The data set and its split are those that the shape model (else the first photon-sum model) was trained with.

    Args:
        out: Folder for the results.
        shape: Run folder or checkpoint of the shape model; without it only the photon sums are judged.
        photons: Run folders or checkpoints of photon-sum models; the first is used with the shape model, all are compared.
        files: Data files, if they are no longer where the models were trained.
        floor: Showers of the same primaries simulated with another seed (``calosim simulate --primaries FILE``). Without
            it, one half of each input's test responses is held against the other half.
        runs: Repetitions with other seeds.
        responses: Responses generated for every test row in each run.
        rows: About that many test rows, spread over particle types and inputs, up to five of an input; all if not given.
        noise_removal: 1 floor, 2 subtract and round, 3 floor and renormalize, 4 subtract, round and renormalize.
        noise_removal_of: Exceptions by particle, for instance "[neutron=1,k0s=2]".
        seed: Seed of the draws.
        device: auto, cpu, cuda or mps.
        quiet: Show no progress.
    """
    if min(runs, responses) < 1 or (rows is not None and rows < 1):
        raise ValueError(f"expected runs, responses and rows of at least 1, got {runs}, {responses} and {rows}")
    photons = photons or []
    if shape is None and not photons:
        raise ValueError("nothing to evaluate: name a shape model with --shape or photon-sum models with --photons")
    where = pick_device(device)
    data = trained_data(shape or photons[0], files)
    models = {str(p): PhotonSum.load(p, where) for p in photons}
    chosen = some_rows(data.inputs("test"), data.arrays["pdg"][data.rows("test")], rows)
    test, inputs = data.showers("test", chosen), data.inputs("test")[chosen]
    if not len(test):
        raise ValueError(f"{', '.join(data.files)}: the test split is empty; nothing to evaluate")
    train = data.showers("train")
    if floor:
        pool, floor_keys = read(floor, data.detector.name), inputs
        pool_keys = _match_inputs(pool, test, inputs)
    else:
        # Each input's test responses in two halves; a row is answered from the half it is not in.
        pool, of_pool = data.showers("test"), data.inputs("test")
        half = _rank_within(of_pool) % 2
        pool_keys, floor_keys = 2 * of_pool + half, 2 * inputs + 1 - half[chosen]
    floor_pool = Pool(pool.images, pool_keys, pool.pdg)
    trivial_pool = Pool(train.images, train.pdg, np.zeros(len(train)))
    test_pdg, zeros = test.pdg, np.zeros(len(test))

    def answers(pool: Pool, keys: np.ndarray, fallback: np.ndarray) -> Callable[[int, np.ndarray], np.ndarray]:
        def positions(run: int, numbers: np.ndarray) -> np.ndarray:
            row = numbers // responses
            return pool.draw(keys[row], fallback[row], seed + run, numbers)

        return positions

    floor_rows, trivial_rows = answers(floor_pool, floor_keys, test_pdg), answers(trivial_pool, test_pdg, zeros)
    results: dict[str, Any] = {
        "calosim": __version__,
        "git": git_hash(),
        "seed": seed,
        "shape": shape,
        "photons": list(models),
        "floor_rows_without_their_input": int((~np.isin(floor_keys, pool_keys)).sum()),
        "floor": floor or "half of each input's test responses against the other half",
        "noise_removal": [noise_removal, noise_removal_of or []],
        "rows": len(test),
        "inputs": len(np.unique(inputs)),
        "runs": runs,
        "responses": responses,
        "data": describe(data),
    }
    folder = Path(out)
    # -- photon sums
    draws_per_row = 50
    numbers = np.arange(len(test) * draws_per_row)
    sums: dict[str, np.ndarray] = {}
    particles = torch.from_numpy(test.particles).to(where, torch.float32)
    for name, model in models.items():
        drawn = [
            model.sample(particles[part // draws_per_row], seed, torch.from_numpy(part).to(where)).cpu().numpy()
            for part in np.array_split(numbers, max(1, len(numbers) // 65536))
        ]
        sums[f"{model.head} ({name})"] = np.concatenate(drawn).reshape(len(test), draws_per_row)
    row = numbers // draws_per_row
    for title, source, keys, fallback in (
        ("floor", floor_pool, floor_keys, test_pdg),
        ("trivial", trivial_pool, test_pdg, zeros),
    ):
        drawn_rows = source.draw(keys[row], fallback[row], seed, numbers)
        pool_sums = source.images.sum(axis=(1, 2), dtype=np.int64)
        sums[title] = pool_sums[drawn_rows].reshape(len(test), draws_per_row)
    results["photon_sum"] = {n: photon_report(s, test.photon_sum, test.pdg) for n, s in sums.items()}
    # -- images
    if shape is not None:
        methods = noise_removals(noise_removal, noise_removal_of or [])
        simulator = FastSimulator.load(shape, photons[0] if photons else None, methods, where)
        true_sum = test.photon_sum

        def generated(full: bool) -> Candidate:
            def images(run: int, numbers: np.ndarray) -> np.ndarray:
                row = numbers // responses
                total = None if full else true_sum[row]
                return simulator.sample(test.particles[row], test.pdg[row], seed + run, numbers, total, batch_size=1024)

            return images

        candidates: dict[str, Candidate] = {"shape alone (true photon sums)": generated(False)}
        if photons:
            candidates["full chain"] = generated(True)
        candidates["floor (Monte Carlo, other seed)"] = lambda run, n: pool.images[floor_rows(run, n)]
        candidates["trivial (random training response)"] = lambda run, n: train.images[trivial_rows(run, n)]
        results["images"] = evaluate(test, inputs, candidates, runs, responses, quiet=quiet)
        _pictures(folder, test, inputs, simulator, bool(photons), seed)
    atomic_write(folder / "evaluation.json", json.dumps(results, indent=2) + "\n")
    atomic_write(folder / "evaluation.csv", _csv(results))
    tables = tables_of(results)
    atomic_write(folder / "evaluation.md", tables)
    print(tables)
    print(f"Tables: {folder}/evaluation.md, .csv, .json", end="")
    print(f"\nPictures: {folder}/responses.png, {folder}/channels.png" if shape else "")


def some_rows(inputs: np.ndarray, pdg: np.ndarray, rows: int | None, together: int = 5) -> np.ndarray:
    """Positions of some rows that keep the mix of particle types and several responses of an input together, ascending.

    Conditional metrics need several responses of an input; evenly spread rows would leave one or two of each.

    Args:
        inputs: Unique-input numbers with shape (N,).
        pdg: PDG codes with shape (N,).
        rows: About how many rows are wanted; all if None.
        together: Responses of one input that stay together.
    """
    if rows is None or rows >= len(inputs):
        return np.arange(len(inputs))
    rank = _rank_within(inputs)
    order = np.lexsort((rank, inputs, pdg))
    starts = np.flatnonzero(rank[order] % together == 0)
    blocks = np.split(order, starts[1:])
    # Evenly spread over blocks sorted by particle type: every type with its share of the blocks.
    wanted = max(1, round(len(blocks) * rows / len(inputs)))
    picked = np.linspace(0, len(blocks) - 1, wanted).round().astype(np.int64)
    return np.sort(np.concatenate([blocks[i] for i in picked]))


def trained_data(run: str | Path, files: list[str] | None = None) -> RootDataModule:
    """The data set that a run was trained with, split as it was then.

    Args:
        run: A run folder or a checkpoint in it.
        files: Other places of its files.

    Raises:
        ValueError: If the run folder has no ``config.yaml``, or the files' contents have changed since.
    """
    folder = Path(run) if Path(run).is_dir() else Path(run).parent.parent
    for name in ("config.yaml", "run.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: expected a run folder with {name}, which names the data of the training")
    settings = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    data = RootDataModule(**{**settings, "files": files or settings["files"]})
    data.setup()
    trained = json.loads((folder / "run.json").read_text())["data"]["data_hash"]
    if data.data_hash != trained:
        raise ValueError(
            f"{', '.join(data.files)}: not the data of {folder} (hash {data.data_hash}, expected {trained}); its test split "
            "would not be the one held out in training"
        )
    return data


def _rank_within(groups: np.ndarray) -> np.ndarray:
    """Counts the earlier rows with the same number, shape (N,)."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    return rank


def _match_inputs(pool: Showers, test: Showers, inputs: np.ndarray) -> np.ndarray:
    """The pool's unique-input numbers in the numbering of the test rows, -1 for primaries that are not among them."""
    columns = [np.ascontiguousarray(np.column_stack([s.particles, s.pdg])) for s in (test, pool)]
    known = {row.tobytes(): number for row, number in zip(columns[0], inputs, strict=True)}
    return np.array([known.get(row.tobytes(), -1) for row in columns[1]], dtype=np.int64)


def tables_of(results: dict[str, Any]) -> str:
    """The results as Markdown tables, the study's particles first."""
    present = list(next(iter(results["photon_sum"].values())))
    wanted = ["all", *(particle_name(c) for c in STUDY_PARTICLES)]
    names = [n for n in wanted if n in present]
    title = {"all": "all", **{particle_name(c): f"{particle_symbol(c)} {particle_name(c)}" for c in STUDY_PARTICLES}}
    lines = [
        f"{results['rows']} test rows of {results['inputs']} primaries; {results['responses']} responses per row, "
        f"{results['runs']} runs; mean ± standard deviation over runs. The floor's sample lacks the primaries of "
        f"{results['floor_rows_without_their_input']} rows; others of their type answer there.",
    ]
    for key, heading, form in METRICS if "images" in results else ():
        lines += ["", f"| {heading} | " + " | ".join(title[n] for n in names) + " |", "|---" * (len(names) + 1) + "|"]
        for candidate, result in results["images"].items():
            cells = [_cell(result["mean"][f"{key}_{n}"], result["std"][f"{key}_{n}"], form) for n in names]
            lines.append(f"| {candidate} | " + " | ".join(cells) + " |")
    head = ("rows", "mae", "rmse", "median_error", "w1", *(f"coverage_{100 * p:.0f}" for p in INTERVALS))
    lines += ["", "| photon sum | model | rows | MAE | RMSE | median error | W1 | inside 50 % | 68 % | 90 % | 95 % |"]
    lines.append("|---" * 11 + "|")
    for n in names:
        for model, report in results["photon_sum"].items():
            v = [report[n][k] for k in head]
            cells = [f"{v[0]:.0f}", *(f"{x:.1f}" for x in v[1:3]), f"{100 * v[3]:.1f} %", f"{v[4]:.1f}"]
            lines.append(f"| {title[n]} | {model} | " + " | ".join([*cells, *(f"{100 * x:.1f}" for x in v[5:])]) + " |")
    return "\n".join(lines) + "\n"


def _cell(mean: float, std: float, form: str) -> str:
    """A mean with its standard deviation; a dash where there was nothing to compare."""
    return "–" if np.isnan(mean) else f"{mean:{form}} ± {std:{form}}"


def _csv(results: dict[str, Any]) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["candidate", "metric", "particle_or_channel", "mean", "std"])
    for candidate, result in results.get("images", {}).items():
        for key in result["mean"]:
            metric = next(m for m, _, _ in METRICS if key.startswith(f"{m}_"))
            table.writerow([candidate, metric, key[len(metric) + 1 :], result["mean"][key], result["std"][key]])
    for model, report in results["photon_sum"].items():
        for particle, values in report.items():
            for key, value in values.items():
                table.writerow([model, f"photon_sum_{key}", particle, value, ""])
    return stream.getvalue()


def _pictures(folder: Path, test: Showers, inputs: np.ndarray, simulator: FastSimulator, full: bool, seed: int) -> None:
    """Responses to some test primaries, Monte Carlo above and generated below, and the channel distributions."""
    from calosim.plotting import channel_histograms, image_rows

    shown: list[int] = []
    for code in (*STUDY_PARTICLES, *np.unique(test.pdg)):
        rows = np.flatnonzero(test.pdg == code)
        # The input with most responses, two of them: diversity shows.
        if len(rows) and test.pdg[rows[0]] not in test.pdg[shown]:
            ids, counts = np.unique(inputs[rows], return_counts=True)
            shown += rows[inputs[rows] == ids[counts.argmax()]][:2].tolist()
    picked = np.array(shown[:10])
    total = None if full else test.photon_sum
    generated = simulator.sample(test.particles, test.pdg, seed, photon_sum=total)
    labels = [
        f"{particle_symbol(int(c))}, {e:.0f} GeV"
        for c, e in zip(test.pdg[picked], test.particles[picked, 0], strict=True)
    ]
    image_rows(test.images[picked], generated[picked], labels, folder / "responses.png")
    detector = test.geometry
    channel_histograms(
        detector.channels(test.images), detector.channels(generated), detector.channel_names(), folder / "channels.png"
    )
