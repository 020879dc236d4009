"""On a CUDA device: the same draws, likelihoods and responses as on a CPU."""

from __future__ import annotations

import warnings

import pytest
import torch

from calosim import rng
from calosim.flows import FlowConfig
from calosim.models.photon_sum import PhotonSum
from calosim.models.student import Student
from calosim.models.teacher import Teacher
from calosim.representations import PixelConfig, SplitConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROWS = 64
SMALL = FlowConfig(transforms=2, hidden=(32, 32), bins=4, dropout=0.0)
SPLITS = SplitConfig(hidden=64, event=32, local_hidden=32)
MODELS = {
    "splits": lambda: Teacher("zn", representation=SPLITS),
    "pixels": lambda: Teacher("zn", SMALL, PixelConfig()),
    "student of splits": lambda: Student("zn", representation=SPLITS, physics=True),
    "student of pixels": lambda: Student("zn", flow=SMALL, representation=PixelConfig(), physics=True),
}


@pytest.fixture(scope="module")
def primaries() -> tuple[torch.Tensor, torch.Tensor]:
    """Neutrons towards the face, with shape (B, 9), and photon sums (B,)."""
    generator = torch.Generator().manual_seed(0)
    momentum = 1000 + 500 * torch.rand(ROWS, generator=generator)
    particles = torch.zeros(ROWS, 9)
    particles[:, 0], particles[:, 6], particles[:, 7] = momentum, momentum, 0.93957
    particles[:, 4:6] = 0.1 * torch.randn(ROWS, 2, generator=generator)
    return particles, torch.randint(10, 2000, (ROWS,), generator=generator)


def test_draws_are_the_same_bits():
    keys = rng.row_keys(torch.arange(1000), rng.BASE_STREAM, 7)
    counters = torch.arange(1000)
    assert torch.equal(rng.uniform_at(keys, counters), rng.uniform_at(keys.cuda(), counters.cuda()).cpu())
    assert torch.equal(rng.uniform(keys, 9), rng.uniform(keys.cuda(), 9).cpu())
    torch.testing.assert_close(rng.normal(keys, 9), rng.normal(keys.cuda(), 9).cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_responses_are_those_of_a_cpu(name, primaries):
    torch.manual_seed(0)
    model, (particles, photon_sum), rows = MODELS[name]().eval(), primaries, torch.arange(ROWS)
    torch.set_float32_matmul_precision("highest")
    here = model.generate(particles, photon_sum, 1, rows)
    there = model.cuda().generate(particles.cuda(), photon_sum.cuda(), 1, rows.cuda())
    assert there.is_cuda
    if not model.requantizations:
        assert torch.equal(there.flatten(1).sum(1).cpu(), photon_sum)
    # The last bits of products differ: a split at the edge may go the other way, and all below it with it.
    same = (there.cpu() == here).flatten(1).all(1).float().mean()
    assert same > (0.9 if not model.requantizations else 0.2)


@pytest.mark.parametrize("name", [n for n in MODELS if not n.startswith("student")])
def test_likelihoods_and_gradients_are_those_of_a_cpu(name, primaries):
    torch.manual_seed(0)
    model, (particles, photon_sum), rows = MODELS[name]().eval(), primaries, torch.arange(ROWS)
    images = model.generate(particles, photon_sum, 2, rows)
    found = []
    for device in ("cpu", "cuda"):
        batch = {"particles": particles, "images": images, "rows": rows}
        model = model.to(device)
        nats = model.log_likelihood({key: value.to(device) for key, value in batch.items()})
        model.zero_grad()
        nats.mean().backward()
        found.append(
            (nats.detach().cpu(), {n: p.grad.cpu().clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-3)
    for key, gradient in found[0][1].items():
        torch.testing.assert_close(
            found[1][1][key], gradient, rtol=1e-2, atol=5e-3 * float(gradient.abs().max() + 1e-3)
        )


@pytest.mark.parametrize("posterior", ["ensemble", "bayesian"])
def test_photon_sums_are_those_of_a_cpu(posterior, primaries):
    torch.manual_seed(0)
    model, (particles, _), rows = PhotonSum(posterior=posterior).eval(), primaries, torch.arange(ROWS)
    here = model.sample(particles, 1, rows)
    there = model.cuda().sample(particles.cuda(), 1, rows.cuda()).cpu()
    assert ((here - there).abs() <= 1 + here // 1000).all()


@pytest.mark.parametrize("name", ["splits"])
def test_a_training_step_waits_for_the_device_only_to_count_what_is_lit(name, primaries):
    torch.manual_seed(0)
    model, (particles, photon_sum), rows = MODELS[name]().eval().cuda(), primaries, torch.arange(ROWS).cuda()
    images = model.generate(particles.cuda(), photon_sum.cuda(), 2, rows)
    batch = {"particles": particles.cuda(), "images": images, "rows": rows}
    model.log_likelihood(batch).mean().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode is a prototype
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.log_likelihood(batch).mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing" in str(w.message)]
    assert len(waits) <= 2 * len(model.representation.local)
