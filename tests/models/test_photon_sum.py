"""The photon sum: two modes where there are two, the networks that answer, draws keyed by row."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from calosim.data.datamodule import RootDataModule
from calosim.data.record import Showers
from calosim.data.root import write
from calosim.models.checkpoints import load_module
from calosim.models.photon_sum import HEADS, PhotonSum

#: Standard deviations that a mean of draws may lie off its expectation.
SIGMAS = 5.0
#: Chi-squared tests fail by chance less often than this, and with fixed seeds never.
P_MIN = 1e-4
heads = pytest.mark.parametrize("head", HEADS)


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
        posterior="ensemble" if head == "mixture" else "bayesian",
        members=2 if head == "mixture" else 8,
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
    assert trained.head.lower <= first.min()
    assert (first <= trained.head.capacity(primaries[:, 0])).all()


def outputs_of(k: int) -> torch.Tensor:
    """Two distributions: one near 10 photons, one of two modes."""
    rows = [[0.0, -9.0, -9.0, -4.0, 0.0, 0.0, -1.7, 0.0, 0.0], [2.0, 1.0, -9.0, -2.5, 1.0, 0.0, -2.5, -3.0, -1.0]]
    return torch.tensor(rows[k], dtype=torch.float64)


@pytest.fixture
def disagreeing(monkeypatch) -> PhotonSum:
    """A posterior of two networks that disagree, each of several components, untrained, with at least 10 photons."""
    module, networks = PhotonSum("zn", components=3, hidden=(16,), members=2).double().eval(), []
    module.head.lower.fill_(10)
    module.head.weight.fill_(1e-12)
    for k in range(2):
        networks.append(torch.nn.Linear(module.features.width, 9, dtype=torch.float64).requires_grad_(False))
        networks[-1].weight.zero_()
        networks[-1].bias.copy_(outputs_of(k))
    monkeypatch.setattr(module, "networks", lambda seed: networks)
    return module


#: Primaries of 500 GeV.
SAME = torch.tensor([500.0, *[1.0] * 8])


def test_samples_follow_the_posterior_predictive(disagreeing):
    module, networks = disagreeing, disagreeing.networks(1)
    count = 20_000
    drawn = module.sample(SAME.expand(count, -1), 1, torch.arange(count))
    numbers = torch.arange(10, int(module.head.capacity(SAME[:1])) + 1)
    energy = SAME[0].expand(len(numbers))
    each = [module.head.log_prob(n.bias.expand(len(numbers), -1), energy, numbers).exp() for n in networks]
    expected = (each[0] + each[1]) / 2
    edges = torch.tensor([10, 15, 20, 30, 40, 60, 80, 120, 180, 300, 400, 420, 450, 60_000])
    wanted = torch.stack([expected[(numbers >= a) & (numbers < b)].sum() for a, b in itertools.pairwise(edges)])
    got = torch.stack([((drawn >= a) & (drawn < b)).sum() for a, b in itertools.pairwise(edges)])
    keep = wanted * count > 10
    wanted, got = (torch.cat([x[keep], x[~keep].sum()[None]]).double() + 1e-9 for x in (wanted, got))
    assert stats.chisquare(got.numpy(), (wanted / wanted.sum() * got.sum()).numpy()).pvalue > P_MIN


def test_aleatoric_and_epistemic_variance_make_the_whole(disagreeing):
    particles, rows = SAME.expand(400, -1), torch.arange(400)
    samples, aleatoric, epistemic = disagreeing.predictive(particles, 1, rows)
    assert samples.shape == (400, 2 * 32)
    deviations = (samples - samples.double().mean()).square()
    error = SIGMAS * deviations.std() / deviations.numel() ** 0.5
    assert (aleatoric + epistemic - deviations.mean()).abs().max() < error
    first, second = (disagreeing.head.moment(network.bias[None], SAME[:1]) for network in disagreeing.networks(1))
    assert epistemic.numpy() == pytest.approx(float((first - second) / 2) ** 2)
    assert epistemic.min() > 2 * error  # or the sum would not miss it
    part = disagreeing.predictive(particles[7:9], 1, rows[7:9])
    assert all(torch.equal(a, b[7:9]) for a, b in zip(part, (samples, aleatoric, epistemic), strict=True))


def test_networks_that_agree_leave_no_epistemic_variance(disagreeing):
    first, second = disagreeing.networks(1)
    second.bias.copy_(first.bias)
    assert disagreeing.predictive(SAME[None], 1, torch.arange(1))[2] == 0


def test_every_network_of_the_posterior_is_used(trained, primaries):
    networks = trained.networks(4)
    assert len(networks) == trained.members
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
    module = PhotonSum(hidden=(8,), components=2, posterior="bayesian", members=2)
    trainer = fit(module, root_file, tmp_path, epochs=2)
    with torch.no_grad():  # as if training had gone astray after the best epoch
        for p in module.posterior.parameters():
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
        "photon_sum": torch.from_numpy(showers.photon_sum[:30]),
    }
    with torch.no_grad():
        got, features = trained.loss(batch), trained.features(batch["particles"]).double()
        energy = batch["particles"][:, 0]
        logs = [trained.head.log_prob(n(features), energy, batch["photon_sum"]) for n in trained.networks(0)]
    torch.testing.assert_close(got, -torch.stack(logs).exp().mean(0).log())


@pytest.mark.parametrize("options", [{"posterior": "none"}, {"members": 0}, {"bins": -1}])
def test_networks_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"expected (a posterior ensemble or bayesian|members of at least 1)"):
        PhotonSum(**options)


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
