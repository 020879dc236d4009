"""The Wasserstein distance against scipy and plain loops; gathering of rows: batches, order, two processes against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from calosim.detectors import DETECTORS
from calosim.metrics.conditional import ConditionalMAE, DispersionRatio, JaccardError
from calosim.metrics.wasserstein import VARIANTS, CheckerboardWasserstein, variant_metrics, wasserstein

ROUNDING = 1e-9  # relative: the same formula, summed in another order
PDG = {22: "gamma", 2112: "neutron", 310: "k0s"}

#: Rows of the first of two processes; the second has the others. Equal, unequal, none at all, everything in one.
SPLITS = {"half": 200, "unequal": 131, "all": 400, "none": 0}


def channel_metrics(detector="zn", convention="paper"):
    """One metric of each kind, which share their states."""
    wasserstein, jaccard = CheckerboardWasserstein(detector, convention), JaccardError(detector, convention)
    return MetricCollection({"ws": wasserstein, "mae": ConditionalMAE(), "delta": DispersionRatio(), "jacc": jaccard})


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 50), (200, 200), (137, 1000)])
@pytest.mark.parametrize("ties", [False, True])
def test_wasserstein_equals_scipy(n, m, ties):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(n + m)
    u, v = rng.gamma(1.0, 30.0, (n, 5)), rng.gamma(1.2, 30.0, (m, 5))
    if ties:
        u, v = np.floor(u), np.floor(v)
    expected = [stats.wasserstein_distance(u[:, i], v[:, i]) for i in range(5)]
    np.testing.assert_allclose(wasserstein(u, v), expected, rtol=ROUNDING)
    np.testing.assert_allclose(wasserstein(u[:, 0], v[:, 0]), expected[0], rtol=ROUNDING)


def test_wasserstein_laws():
    rng = np.random.default_rng(0)
    u = rng.poisson(5, 300).astype(float)
    assert wasserstein(u, np.repeat(rng.permutation(u), 5)) == 0  # copies change no distribution
    assert wasserstein(u, u + 2.5) == pytest.approx(2.5, rel=ROUNDING)
    assert wasserstein(u, 3 * u) == wasserstein(3 * u, u) == pytest.approx(2 * u.mean(), rel=ROUNDING)


def test_checkerboard_wasserstein_pools_within_each_particle_and_channel(make_rows, compute):
    rows = make_rows()
    generated, reference, particle, _ = (x.numpy() for x in rows)
    names = DETECTORS["zn"].channel_names("o2")
    result = compute(CheckerboardWasserstein("zn", "o2"), rows)
    channels = wasserstein(reference, generated.reshape(-1, 5))
    expected = {"all": channels.mean(), **dict(zip(names, channels, strict=True))}
    for pdg, name in PDG.items():
        mine = particle == pdg
        expected[name] = wasserstein(reference[mine], generated[mine].reshape(-1, 5)).mean()
    assert result == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("integers", [True, False])
def test_batches_and_order_do_not_change_a_bit(make_rows, compute, integers):
    rows = make_rows(integers=integers)
    whole, parts = channel_metrics("zp", "o2"), channel_metrics("zp", "o2")
    whole.update(*rows)
    order = torch.randperm(len(rows[1]), generator=torch.Generator().manual_seed(1))
    for part in order.split(37):
        parts.update(*(x[part] for x in rows))
    assert whole.compute() == parts.compute()


def test_two_dimensional_generations_equal_one_generation(make_rows, compute):
    generated, *rest = make_rows(generations=1)
    assert compute(channel_metrics(), (generated, *rest)) == compute(channel_metrics(), (generated[:, 0], *rest))


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 2, 4), (4, 5), (4,), (4,)],
        [(4, 0, 5), (4, 5), (4,), (4,)],
        [(3, 2, 5), (4, 5), (4,), (4,)],
        [(4, 5), (4, 5), (3,), (4,)],
        [(4, 5), (4, 5), (4,), (4, 1)],
        [(5,), (5,), (), ()],
    ],
)
def test_bad_shapes_are_named(shapes):
    with pytest.raises(ValueError, match=r"expected generated .* got"):
        CheckerboardWasserstein().update(*(torch.zeros(shape) for shape in shapes))


def process(rank, store, out, stored):
    """What each process does: its share of the rows, then the metrics of all."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    with np.load(stored) as arrays:
        rows = [torch.from_numpy(arrays[name]) for name in arrays.files]
    result = {}
    for name, first in SPLITS.items():
        share = slice(first) if rank == 0 else slice(first, None)
        metrics = channel_metrics()
        metrics.update(*(x[share] for x in rows))
        metrics.update(*(x[:0] for x in rows))
        result[name] = {key: float(value).hex() for key, value in metrics.compute().items()}
        result[f"{name} per primary"] = [x.tolist() for x in metrics["delta"].per_primary()]
    never_updated = DispersionRatio()
    if rank == 0:
        never_updated.update(*rows)
    result["never updated"] = [x.tolist() for x in never_updated.per_primary()]
    torch.distributed.destroy_process_group()  # its threads must not outlive the interpreter
    Path(out).write_text(json.dumps(result))


def test_two_processes_equal_one_exactly(make_rows, compute, tmp_path):
    rows = make_rows(integers=False)
    metrics = channel_metrics()
    metrics.update(*rows)
    expected = {key: float(value).hex() for key, value in metrics.compute().items()}
    per_primary = [x.tolist() for x in metrics["delta"].per_primary()]

    np.savez(tmp_path / "rows.npz", *rows)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", __file__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), *(str(tmp_path / name) for name in ("store", f"{rank}.json", "rows.npz"))],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(errors)
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in SPLITS:
            assert result[name] == expected, name
            assert result[f"{name} per primary"] == per_primary, name
        assert result["never updated"] == per_primary


if __name__ == "__main__":
    process(int(sys.argv[1]), *sys.argv[2:])


def test_what_is_not_finite_has_no_distance():
    with pytest.raises(ValueError, match="expected finite values"):
        wasserstein([1.0, np.nan], [1.0, 2.0])
    metric = CheckerboardWasserstein("zn")
    rows = torch.ones(3, 2, 5)
    rows[1, 0, 2] = torch.inf
    codes = torch.full((3,), 22)
    with pytest.raises(ValueError, match="expected finite generated channel values, got others in row 1"):
        metric.update(rows, torch.ones(3, 5), codes, torch.arange(3))
    with pytest.raises(ValueError, match="expected finite reference channel values, got others in row 1"):
        metric.update(torch.ones(3, 2, 5), rows[:, 0], codes, torch.arange(3))


def test_generations_are_pooled_or_one_counts():
    reference = np.zeros((2, 5))
    generated = np.zeros((2, 2, 5))
    generated[:, 1] = 4.0
    assert variant_metrics(VARIANTS["zdc"], reference, generated) == {"ws": 2.0, "mae": 2.0}
    assert variant_metrics(VARIANTS["zdc-fast-simulations"], reference, generated) == {"ws": 0.0, "mae": 0.0}


def test_rows_are_paired():
    """The same responses in another order: no distance between distributions, and an error all the same."""
    reference = np.repeat([[1.0], [3.0]], 5, axis=1)
    found = variant_metrics(VARIANTS["zdc"], reference, reference[::-1, None])
    assert found == {"ws": 0.0, "mae": 2.0}


@pytest.mark.parametrize(("name", "words"), [("zdc", "not rounded, all"), ("zdc-fast-simulations", "photons, one")])
def test_words_say_what_is_done(name, words):
    assert words in VARIANTS[name].words
