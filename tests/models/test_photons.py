"""The photon sum: densities that integrate to one, draws that follow them, and two modes where there are two."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from calosim import draws
from calosim.models.checkpoints import load_module
from calosim.models.photons import PhotonSum
from calosim.showers.datamodule import RootDataModule
from calosim.showers.record import Showers
from calosim.showers.root import write

#: Quadrature of the density over photon numbers.
QUADRATURE = 1e-3
#: Rounding to integers in moments, relative.
ROUNDING = 2e-3
#: Standard deviations that a mean of draws may lie off its expectation.
SIGMAS = 5.0
#: Chi-squared tests fail by chance less often than this, and with fixed seeds never.
P_MIN = 1e-4
HEADS = ("mixture", "gaussian")
heads = pytest.mark.parametrize("head", HEADS)
#: Points of the unit interval that a photon number fills.
JITTER = (torch.arange(8, dtype=torch.float64) + 0.5) / 8


def make(head: str = "mixture", lower: float = 10, upper: float = math.inf, **options) -> PhotonSum:
    """Untrained, with the scales of the published data: median 234 photons, at least 10."""
    module = PhotonSum("zn", **{"head": head, "components": 3, "hidden": (16,), "posterior_samples": 3, **options})
    module.center.fill_(math.log(234.0) if head == "mixture" else 234.0)
    module.spread.fill_(0.9 if head == "mixture" else 150.0)
    module.lower.fill_(lower)
    module.upper.fill_(upper)
    return module.double().eval()


def outputs_of(head: str) -> torch.Tensor:
    """Four distributions: near the centre, two apart, one cut in half by the smallest sum, one below it."""
    if head == "gaussian":
        rows = [[0.0, 0.0], [1.0, -2.0], [-1.0, -1.0], [5.0, 0.5]]
    else:
        rows = [
            [0.0, 0.0, 0.0, 0.0, 0.5, -0.5, -0.7, -0.7, -0.7],
            [2.0, 1.0, -9.0, -1.5, 1.5, 0.0, -1.5, -1.5, -1.0],
            [0.0, -9.0, -9.0, -3.4, 0.0, 0.0, -0.7, 0.0, 0.0],
            [0.0, -9.0, 0.0, -6.0, 0.0, 1.0, -0.2, 0.0, -2.0],
        ]
    return torch.tensor(rows, dtype=torch.float64)


def probabilities(module: PhotonSum, output: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The probability of each photon number: the density's mean over its unit interval."""
    total = numbers.repeat_interleave(len(JITTER))
    jitter = JITTER.repeat(len(numbers))
    with torch.no_grad():
        density = module.log_density(output.expand(len(total), -1), total, jitter).exp()
    return density.view(len(numbers), -1).mean(1)


def support(module: PhotonSum) -> torch.Tensor:
    return torch.arange(10, 60_000) if module.head == "mixture" else torch.arange(-3000, 4000)


@heads
@pytest.mark.parametrize("row", range(4))
def test_densities_integrate_to_one(head, row):
    module = make(head)
    assert probabilities(module, outputs_of(head)[row], support(module)).sum() == pytest.approx(1.0, abs=QUADRATURE)


@pytest.mark.parametrize("lower", [1, 2, 100])
def test_the_mixture_integrates_to_one_above_any_smallest_sum(lower):
    module = make("mixture", lower)
    for output in outputs_of("mixture"):
        total = probabilities(module, output, torch.arange(lower, 60_000)).sum()
        assert total == pytest.approx(1.0, abs=20 * QUADRATURE if lower == 1 else 2 * QUADRATURE)  # curved near one


@heads
@pytest.mark.parametrize("row", range(4))
def test_draws_follow_the_density(head, row):
    module, count = make(head), 40_000
    numbers = draws.uniform(draws.row_keys(torch.arange(count), 1, row), 2).double()
    drawn = module.draw(outputs_of(head)[row].expand(count, -1), numbers)
    assert drawn.dtype == torch.int64
    photons = support(module)
    expected = probabilities(module, outputs_of(head)[row], photons)
    if head == "gaussian":  # no image has fewer than no photons
        expected = torch.cat([expected[photons <= 0].sum()[None], expected[photons > 0]])
        photons = photons[photons >= 0]
    # Bins of at least 200 expected draws.
    edge = (expected.cumsum(0) * count / 200).long()
    bins = edge.unique(return_inverse=True)[1]
    wanted = torch.zeros(int(bins.max()) + 1, dtype=torch.float64).index_add_(0, bins, expected)
    got = bins[(drawn - photons[0]).clamp(max=len(bins) - 1)].bincount(minlength=len(wanted))
    keep = wanted * count > 20
    wanted = torch.cat([wanted[keep], wanted[~keep].sum()[None] + 1e-9])
    got = torch.cat([got[keep], got[~keep].sum()[None]])
    assert stats.chisquare(got.numpy(), (wanted / wanted.sum() * count).numpy()).pvalue > P_MIN


def test_the_mixture_is_the_textbook_one_where_nothing_is_cut():
    module, output = make("mixture", lower=1), outputs_of("mixture")[:1]
    n = torch.tensor([200.0], dtype=torch.float64)
    weight = output[0, :3].softmax(0)
    parts = torch.distributions.LogNormal(
        module.center + module.spread * output[0, 3:6], module.spread * (1e-2 + output[0, 6:].exp())
    )
    expected = (weight * parts.log_prob(n).exp()).sum().log()
    got = module.log_density(output, n, torch.tensor([0.5], dtype=torch.float64))
    assert float(got) == pytest.approx(float(expected), abs=1e-3)


def test_the_gaussian_is_the_textbook_one():
    module, output = make("gaussian"), outputs_of("gaussian")[1:2]
    expected = stats.norm(234 + 150, 150 * (0.01 + math.exp(-2.0))).logpdf(400.0)
    got = module.log_density(output, torch.tensor([400]), torch.tensor([0.5], dtype=torch.float64))
    assert float(got) == pytest.approx(expected, abs=1e-6)


def test_mixture_draws_are_never_below_the_smallest_sum():
    module = make("mixture", lower=11, upper=3360)
    numbers = torch.cat([draws.uniform(draws.row_keys(torch.arange(500), 1), 2), torch.full((1, 2), 1 - 2.0**-24)])
    for mean, log_scale in itertools.product((-1e4, -50.0, -6.0, -3.4, 0.0, 5.0), (-20.0, -3.0, 0.0, 5.0, 50.0)):
        output = torch.tensor([[0.0, 0.0, 0.0, mean, mean, mean, log_scale, log_scale, log_scale]]).double()
        drawn = module.draw(output.expand(len(numbers), -1), numbers.double())
        assert drawn.min() >= 11
        assert drawn.max() <= 3360


@heads
def test_draws_are_never_above_the_largest_sum(head):
    module = make(head, upper=300)
    numbers = draws.uniform(draws.row_keys(torch.arange(2000), 1), 2).double()
    drawn = module.draw(outputs_of(head)[:1].expand(2000, -1), numbers)
    assert drawn.max() == 300
    assert drawn.min() >= 0


@heads
def test_densities_are_finite_with_finite_gradients_far_out(head):
    module = make(head).float()
    outputs = (100 * torch.randn(64, 9 if head == "mixture" else 2, generator=torch.manual_seed(0))).requires_grad_()
    log_density = module.log_density(outputs, torch.tensor([10, 177_940]).repeat(32), torch.full((64,), 0.5))
    assert torch.isfinite(log_density).all()
    log_density.sum().backward()
    assert torch.isfinite(outputs.grad).all()


@heads
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("upper", [300, 3360])
def test_moments_are_sums_over_the_density_with_what_is_beyond_its_bounds_at_them(head, power, upper):
    module, photons = make(head, upper=upper), support(make(head))
    values = photons.double().clamp(0, upper).pow(power)
    for output, moment in zip(outputs_of(head), module.moment(outputs_of(head), power), strict=True):
        assert float(moment) == pytest.approx(float(probabilities(module, output, photons) @ values), rel=ROUNDING)


def test_an_unknown_head_is_named():
    with pytest.raises(ValueError, match="unknown head 'poisson'; expected mixture or gaussian"):
        PhotonSum(head="poisson")


# -- standardization --------------------------------------------------------------------------------------------------


@heads
def test_one_artefact_does_not_decide_a_scale(make_showers, tmp_path, fit, head):
    modules = []
    for artefact in (0, 177_940):
        path = tmp_path / f"{artefact}.root"
        write(path, make_showers(artefact=artefact))
        module = PhotonSum(head=head, hidden=(8,), posterior_samples=2)
        fit(module, path, tmp_path / str(artefact), trainer={"limit_train_batches": 1}, seed=1)
        modules.append(module)
    clean, dirty = modules
    torch.testing.assert_close(dirty.center, clean.center, rtol=0.02, atol=0)
    torch.testing.assert_close(dirty.spread, clean.spread, rtol=0.05, atol=0)
    assert dirty.upper >= 177_940  # or the test tested nothing: the row must be in the training split


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Sums around 60 or around 600: 600 with probability 0.8 where vx > 0, else 0.2."""
    rng = np.random.default_rng(0)
    rows = 1600
    particles = np.zeros((rows, 9))
    particles[:, 0] = rng.uniform(100, 1000, rows)
    particles[:, 1] = rng.choice([-1e-6, 1e-6], rows)
    particles[:, 6] = particles[:, 0]
    high = rng.random(rows) < np.where(particles[:, 1] > 0, 0.8, 0.2)
    images = np.zeros((rows, 44, 44), dtype=np.int16)
    images[:, 20, 20] = np.where(high, rng.normal(600, 40, rows), rng.normal(60, 6, rows)).round()
    path = tmp_path_factory.mktemp("toy") / "toy.root"
    write(path, Showers(particles, np.full(rows, 22, np.int32), images, "zn"))
    return path


@heads
def test_two_modes_are_recovered_by_the_mixture_and_not_by_the_gaussian(toy, tmp_path, fit, head):
    torch.manual_seed(0)
    module = PhotonSum(
        head=head,
        components=4,
        hidden=(32,),
        posterior_samples=8,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    )
    fit(module, toy, tmp_path, epochs=30, batch_size=128, trainer={"check_val_every_n_epoch": 30})
    particles = torch.zeros(4000, 9)
    particles[:, 0] = particles[:, 6] = torch.linspace(100, 1000, 4000)
    for sign, truth in ((1, 0.8), (-1, 0.2)):
        particles[:, 1] = sign * 1e-6
        total = module.sample(particles, 3, torch.arange(4000))
        low = ((total >= 36) & (total <= 90)).float().mean()
        high = ((total >= 400) & (total <= 800)).float().mean()
        between = ((total > 120) & (total < 350)).float().mean()
        if head == "mixture":
            assert abs(float(high) - truth) < 0.12
            assert abs(float(low) - (1 - truth)) < 0.12
            assert between < 0.05
        else:
            assert between > 0.15
            assert low < 0.2


@heads
def test_only_the_posterior_is_trained(head):
    module = PhotonSum(head=head)
    assert not any(p.requires_grad for p in module.bayes.base.parameters())
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("bayes.") and not name.startswith("bayes.base") for name in trained)
    assert module.configure_optimizers().param_groups[0]["params"] == [
        p for p in module.parameters() if p.requires_grad
    ]


# -- inference --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(run_folders) -> PhotonSum:
    return PhotonSum.load(run_folders["photons"])


@pytest.fixture(scope="module")
def primaries(showers) -> torch.Tensor:
    return torch.from_numpy(showers.particles[:200]).float()


def test_a_row_does_not_depend_on_batch_size_order_or_other_rows(trained, primaries):
    rows = torch.arange(200) * 2**33 + 5
    whole = trained.sample(primaries, 1, rows)
    for size in (1, 7, 64):
        parts = [trained.sample(p, 1, r) for p, r in zip(primaries.split(size), rows.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(200, generator=torch.manual_seed(0))
    assert torch.equal(trained.sample(primaries[order], 1, rows[order]), whole[order])
    assert trained.sample(primaries[:0], 1, rows[:0]).shape == (0,)


def test_seeds_and_rows_give_other_draws(trained, primaries):
    rows = torch.arange(200)
    first = trained.sample(primaries, 1, rows)
    assert (trained.sample(primaries, 2, rows) != first).float().mean() > 0.5
    assert (trained.sample(primaries, 1, rows + 200) != first).float().mean() > 0.5
    assert torch.equal(trained.sample(primaries, 1, rows), first)
    assert first.dtype == torch.int64
    assert trained.lower <= first.min()
    assert first.max() <= trained.upper


@pytest.fixture
def disagreeing(monkeypatch) -> PhotonSum:
    """A posterior of two networks that disagree, each of several components."""
    module, networks = make(upper=3360), []
    for row in (1, 2):
        networks.append(torch.nn.Linear(module.features.width, 9, dtype=torch.float64).requires_grad_(False))
        networks[-1].weight.zero_()
        networks[-1].bias.copy_(outputs_of("mixture")[row])
    monkeypatch.setattr(module, "networks", lambda seed: networks)
    return module


def test_samples_follow_the_posterior_predictive(disagreeing):
    module, networks = disagreeing, disagreeing.networks(1)
    count = 20_000
    drawn = module.sample(torch.ones(count, 9), 1, torch.arange(count))
    numbers = support(module)
    expected = (probabilities(module, networks[0].bias, numbers) + probabilities(module, networks[1].bias, numbers)) / 2
    edges = torch.tensor([10, 20, 40, 80, 120, 180, 234, 300, 400, 500, 600, 800, 1000, 1500, 60_000])
    wanted = torch.stack([expected[(numbers >= a) & (numbers < b)].sum() for a, b in itertools.pairwise(edges)])
    got = torch.stack([((drawn >= a) & (drawn < b)).sum() for a, b in itertools.pairwise(edges)])
    assert stats.chisquare(got.numpy(), (wanted / wanted.sum() * count).numpy()).pvalue > P_MIN


def test_aleatoric_and_epistemic_variance_make_the_whole(disagreeing):
    particles, rows = torch.ones(400, 9), torch.arange(400)
    samples, aleatoric, epistemic = disagreeing.predictive(particles, 1, rows)
    assert samples.shape == (400, 2 * 32)
    deviations = (samples - samples.double().mean()).square()
    error = SIGMAS * deviations.std() / deviations.numel() ** 0.5
    assert (aleatoric + epistemic - deviations.mean()).abs().max() < error
    first, second = (disagreeing.moment(network.bias[None]) for network in disagreeing.networks(1))
    assert epistemic.numpy() == pytest.approx(float((first - second) / 2) ** 2)
    assert epistemic.min() > 2 * error  # or the sum would not miss it
    part = disagreeing.predictive(particles[7:9], 1, rows[7:9])
    assert all(torch.equal(a, b[7:9]) for a, b in zip(part, (samples, aleatoric, epistemic), strict=True))


def test_networks_that_agree_leave_no_epistemic_variance(disagreeing):
    first, second = disagreeing.networks(1)
    second.bias.copy_(first.bias)
    assert disagreeing.predictive(torch.ones(1, 9), 1, torch.arange(1))[2] == 0


def test_every_network_of_the_posterior_is_used(trained, primaries):
    networks = trained.networks(4)
    assert len(networks) == trained.posterior_samples
    used = []
    hooks = [n.register_forward_hook(lambda m, i, o, k=k: used.append((k, len(o)))) for k, n in enumerate(networks)]
    trained.sample(primaries, 4, torch.arange(200))
    for hook in hooks:
        hook.remove()
    assert sorted(k for k, _ in used) == list(range(len(networks)))
    assert sum(rows for _, rows in used) == 200
    assert min(rows for _, rows in used) > 200 / len(networks) / 2


def test_global_random_state_is_neither_read_nor_written(run_folders, primaries):
    results = []
    for seed in (1, 2):
        module = PhotonSum.load(run_folders["photons"])
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        results.append(module.sample(primaries, 9, torch.arange(200)))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(*results)


def test_networks_are_forgotten_when_the_weights_are_replaced(run_folders, primaries):
    rows = torch.arange(200)
    trained = PhotonSum.load(run_folders["photons"])
    other = PhotonSum(**trained.init)
    other.sample(primaries, 0, rows)
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other.sample(primaries, 0, rows), trained.sample(primaries, 0, rows))


def test_testing_the_best_checkpoint_after_training_uses_its_weights(root_file, tmp_path, fit):
    module = PhotonSum(hidden=(8,), components=2, posterior_samples=2)
    trainer = fit(module, root_file, tmp_path, epochs=2)
    with torch.no_grad():  # as if training had gone astray after the best epoch
        for p in module.bayes.parameters():
            p.add_(1.0)
    module.networks(0)
    best = str(tmp_path / "checkpoints" / "best.ckpt")
    (after_training,) = trainer.test(module, RootDataModule(str(root_file)), ckpt_path=best, verbose=False)
    (fresh,) = trainer.test(load_module(best), RootDataModule(str(root_file)), verbose=False)
    assert after_training == fresh
    # What evaluation kept can be used outside of its inference mode, for instance to explain it by its gradients.
    features = torch.zeros(1, module.features.width, dtype=torch.float64, requires_grad=True)
    module.networks(0)[0](features).sum().backward()
    assert features.grad.any()


def test_the_test_loss_is_the_posterior_predictive(trained, showers):
    batch = {
        "particles": torch.from_numpy(showers.particles[:30]).float(),
        "images": torch.from_numpy(showers.images[:30]),
        "rows": torch.arange(30),
    }
    with torch.no_grad():
        got = trained._evaluation_step(batch)
        jitter = draws.uniform(draws.row_keys(batch["rows"], draws.NOISE_STREAM, 0), 1)[:, 0]
        densities = [
            trained.log_density(n(trained.features(batch["particles"]).double()), batch["images"].sum((1, 2)), jitter)
            for n in trained.networks(0)
        ]
    expected = -torch.stack(densities).exp().mean(0).log()
    torch.testing.assert_close(got, expected)


def test_prediction_runs_through_the_trainer(run_folders, root_file, tmp_path):
    from lightning import Trainer

    module = PhotonSum.load(run_folders["photons"])
    data = RootDataModule(str(root_file), batch_size=32)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    batches = trainer.predict(module, data)
    rows = torch.cat([b["rows"] for b in batches])
    assert rows.tolist() == data.rows("test").tolist()
    particles = torch.from_numpy(data.showers("test").particles).float()
    assert torch.equal(torch.cat([b["photon_sum"] for b in batches]), module.sample(particles, 0, rows))
