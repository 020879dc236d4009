"""What every model of whole images must do, whatever it is inside: flow matching, GAN and VAE."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from calosim import rng
from calosim.models.checkpoints import MODULES, load_module
from calosim.models.finetune import FineTune
from calosim.models.flow_matching import FlowMatching, euler
from calosim.models.gan import GAN
from calosim.models.images import with_sum
from calosim.models.shower import ShowerModel
from calosim.models.vae import VAE, multinomial

#: Tiny models.
KINDS = {
    "FlowMatching": lambda **more: FlowMatching(widths=(4, 4), embedding=8, steps=2, **more),
    "GAN": lambda **more: GAN(width=8, **more),
    "VAE": lambda **more: VAE(latent=3, width=8, **more),
}
FEW = {"limit_train_batches": 3, "limit_val_batches": 2}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def make(kind):
    """Makes a model of the kind, the same every time."""

    def build(**more) -> ShowerModel:
        torch.manual_seed(3)
        return KINDS[kind](**more)

    return build


@pytest.fixture(scope="session")
def batch(showers) -> dict[str, torch.Tensor]:
    some = showers.select(slice(0, 21))
    arrays = {"particles": some.particles.astype(np.float32), "images": some.images.astype(np.int64)}
    return {**{k: torch.from_numpy(v) for k, v in arrays.items()}, "rows": torch.arange(100, 121)}


def fitted(model: ShowerModel, batch) -> ShowerModel:
    model.features.fit(batch["particles"], batch["images"].sum((1, 2)))
    return model.eval()


def equal(a: ShowerModel, b: ShowerModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_images_have_their_sums_and_do_not_depend_on_the_batch(make, batch):
    model, given = fitted(make(), batch), (batch["particles"], batch["images"].sum((1, 2)))
    given[1][2:5] = torch.tensor([0, 1, 70_000])
    images = model.generate(*given, 5, batch["rows"])
    assert images.dtype == torch.int64
    assert images.shape == (21, *model.detector.shape)
    assert images.min() >= 0
    assert torch.equal(images.sum((1, 2)), given[1])
    some = torch.tensor([17, 2, 4])
    assert torch.equal(model.generate(given[0][some], given[1][some], 5, batch["rows"][some]), images[some])
    other = model.generate(*given, 6, batch["rows"])
    assert (other != images).any((1, 2)).sum() > 15, "expected another seed to draw other images"


def test_losses_are_keyed_by_row_and_step(make, batch):
    model = fitted(make(), batch)
    some = {key: value[[3, 9]] for key, value in batch.items()}
    for step in (-1, 4):
        torch.testing.assert_close(model.loss(some, step), model.loss(batch, step)[[3, 9]], rtol=1e-4, atol=1e-4)
    # An exact probability needs no noise; all other losses draw it anew in each step.
    assert torch.equal(model.loss(batch, 4), model.loss(batch, 5)) == (model.nll_unit == "nats an image")
    assert model.loss(batch).shape == (21,)


def test_a_resumed_training_is_the_uninterrupted_one(kind, make, root_file, tmp_path, fit):
    whole, resumed = make(), make()
    fit(whole, root_file, tmp_path / "whole", epochs=2, trainer=FEW)
    fit(make(), root_file, tmp_path / "parts", epochs=1, trainer=FEW)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    fit(resumed, root_file, tmp_path / "parts", epochs=2, ckpt_path=last, trainer=FEW)
    assert equal(whole, resumed)
    assert not equal(whole, make())
    # What was trained goes on as what it is.
    loaded = load_module(tmp_path / "whole")
    assert type(loaded).__name__ == kind
    tuned = FineTune(tmp_path / "whole")
    assert type(tuned) is type(loaded)
    assert equal(tuned, loaded)
    fit(tuned, root_file, tmp_path / "tuned", particle="neutron", trainer=FEW)
    assert torch.equal(tuned.features.mean, loaded.features.mean)
    assert not equal(tuned, loaded)
    assert type(load_module(tmp_path / "tuned")) is type(loaded)
    with pytest.raises(ValueError, match=f"expected a baseline with dropout to set it, got a {kind} without"):
        FineTune(tmp_path / "whole", dropout=0.1)


def unlike(model: ShowerModel, batch) -> float:
    """How far the mean of what a GAN makes is from the mean of the images; elsewhere the loss."""
    with torch.no_grad():
        if not isinstance(model, GAN):
            return model.loss(batch).mean().item()
        x, context = model.inputs(batch)
        made = model.logarithms(rng.normal(rng.row_keys(batch["rows"]), model.noise), context)
        return (made.mean(0) - x[:, 0].mean(0)).abs().sum().item()


def test_learns(make, batch):
    model = fitted(make(), batch)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3, betas=(0.5, 0.9))
    before = unlike(model, batch)
    for step in range(40 if not isinstance(model, FlowMatching) else 15):
        model.train()
        optimizer.zero_grad()
        model.loss(batch, step).mean().backward()
        optimizer.step()
        if isinstance(model, FlowMatching):
            model.averaged.update_parameters(model.velocity)
    assert unlike(model.eval(), batch) < 0.8 * before


def test_every_kind_has_a_likelihood_or_says_that_it_has_none(make, batch):
    model = fitted(make(), batch)
    if model.nll_unit is None:
        with pytest.raises(NotImplementedError):
            model.log_likelihood(batch)
    else:
        torch.testing.assert_close(model.log_likelihood(batch), -model.loss(batch))
    assert type(model).__name__ in MODULES
    assert model.stages() == []


# -- each by itself -------------------------------------------------------------------------------------------------------


def test_the_bound_is_one():
    """On images of three pixels and three photons, a model of such images summed over all of them is at most one."""
    model = VAE(latent=2, width=8).eval()
    model.decoder, model.encoder = Small(2 + model.features.width, 3), Small(3 + model.features.width, 4)
    images = [k for k in itertools.product(range(4), repeat=3) if sum(k) == 3]
    batch = {"images": torch.tensor(images)[:, None], "particles": torch.zeros(len(images), 9)}
    bounds = []
    for seed in range(300):
        batch["rows"] = seed * len(images) + torch.arange(len(images))
        bounds.append(model.log_likelihood(batch).detach())
    total = torch.stack(bounds).mean(0).exp().sum()
    assert 0.2 < total < 1


class Small(nn.Module):
    """A linear network in the place of an encoder or a decoder."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        torch.manual_seed(outputs)
        self.layer = nn.Linear(inputs, outputs)
        self.layer.weight.data *= 0.3

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([x.flatten(1), c], 1))


def test_photons_are_multinomial():
    p = torch.tensor([[0.5, 0.25, 0.0, 0.25], [1.0, 7.0, 1.0, 1.0]], dtype=torch.float64).repeat(4000, 1)
    total = torch.tensor([8, 5]).repeat(4000)
    counts = multinomial(p, total, rng.row_keys(torch.arange(8000), rng.NOISE_STREAM)).double()
    for k, n in enumerate((8, 5)):
        mine, share = counts[k::2], p[k] / p[k].sum()
        torch.testing.assert_close(mine.mean(0), n * share, atol=0.08, rtol=0)
        torch.testing.assert_close(mine.var(0), n * share * (1 - share), atol=0.15, rtol=0)
    assert counts[::2, 2].sum() == 0


def test_counts_by_largest_remainders():
    images = torch.tensor([[[2.0, 1.0], [1.0, 0.4]], [[0.1, 0.3], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    counts = with_sum(images, torch.tensor([5, 4, 2]))
    assert counts.tolist() == [[[3, 1], [1, 0]], [[1, 3], [0, 0]], [[1, 1], [0, 0]]]
    assert with_sum(images[:1], torch.tensor([0])).sum() == 0


def test_euler_follows_the_velocity_of_a_gaussian():
    """From N(0, 1) to N(m, s): the mean velocity at x_t is known, and many steps end there."""
    m, s = 1.5, 0.4

    def velocity(x, t, c):
        t = t[:, None, None, None]
        variance = (1 - t) ** 2 + (t * s) ** 2
        return m + (t * s**2 - (1 - t)) / variance * (x - t * m)

    z = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    x = euler(velocity, z, torch.empty(0), 200)
    assert math.isclose(x.mean(), m, abs_tol=0.02)
    assert math.isclose(x.std(), s, abs_tol=0.02)


def test_the_averaged_weights_lag_behind(batch):
    model = fitted(KINDS["FlowMatching"](), batch)
    first = [p.clone() for p in model.velocity.parameters()]
    for value in (1.0, 2.0):
        for p in model.velocity.parameters():
            p.data.fill_(value)
        model.averaged.update_parameters(model.velocity)
    share = 1 - 2 / 11  # after one step
    for p, _ in zip(model.averaged.parameters(), first, strict=True):
        torch.testing.assert_close(p, torch.full_like(p, 1 + share))
        assert not p.requires_grad


def test_the_critic_learns_from_the_cut_off_image_and_the_generator_from_the_held_critic(batch):
    model = fitted(KINDS["GAN"](), batch).train()
    parts = model.parts(batch, 1)
    for name, other in (("critic", "generator"), ("generator", "critic")):
        gradients = torch.autograd.grad(
            parts[name].mean(), list(getattr(model, other).parameters()), retain_graph=True, allow_unused=True
        )
        assert all(g is None for g in gradients)
        own = torch.autograd.grad(parts[name].mean(), list(getattr(model, name).parameters()), retain_graph=True)
        assert any(g.abs().sum() > 0 for g in own)


def test_a_response_needs_no_part_that_serves_the_training_alone(make):
    model = make()
    all_of_them = sum(p.numel() for p in model.parameters())
    assert 0 < model.size <= all_of_them
    assert (model.size < all_of_them) == (type(model).answering is not ShowerModel.answering)
