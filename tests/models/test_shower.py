"""Likelihood and generation of shower models: no standardization, batch or epoch shows where it must not."""

from __future__ import annotations

import pytest
import torch
from lightning import Trainer

from calosim import rng
from calosim.data.datamodule import RootDataModule
from calosim.flows import FlowConfig
from calosim.models.base import fit_sample
from calosim.models.checkpoints import load_module
from calosim.models.shower import ShowerModel
from calosim.models.teacher import Teacher
from calosim.representations import PixelConfig, PixelLogits

#: Logits of one row in batches of different size: float32 matrix products sum in another order.
REORDERED = 1e-3

TINY = FlowConfig(transforms=1, hidden=(8, 8), bins=4, dropout=0.2)


def test_the_standardizations_are_those_of_the_training_split(root_file, run_folders):
    data = RootDataModule(str(root_file))
    rows, particles, images = fit_sample(data)
    assert rows.tolist() == data.rows("train").tolist()  # few enough to take all
    teacher = load_module(run_folders["teacher"])
    expected = PixelLogits(teacher.detector)
    expected.fit(images, rng.row_keys(rows, rng.FIT_STREAM))
    assert torch.equal(teacher.representation.mean, expected.mean)
    assert torch.equal(teacher.representation.scale, expected.scale)
    encoded = teacher.context(particles, images.flatten(1).sum(1))
    torch.testing.assert_close(encoded.mean(0), torch.zeros(encoded.shape[1]), rtol=0, atol=1e-3)


def test_the_likelihood_does_not_depend_on_the_standardization(showers):
    """An untrained flow is close to the identity; what is compared is the change of variables."""
    batch = {
        "particles": torch.from_numpy(showers.particles[:40]).float(),
        "images": torch.from_numpy(showers.images[:40]),
        "rows": torch.arange(40),
    }
    teacher = Teacher(flow=TINY, representation=PixelConfig()).eval()
    teacher.representation.fit(batch["images"], rng.row_keys(batch["rows"], rng.FIT_STREAM))
    teacher.features.fit(batch["particles"], batch["images"].flatten(1).sum(1))
    with torch.no_grad():
        got = teacher.log_likelihood(batch)
        images, context, keys = teacher.inputs(batch)
        x, _ = teacher.representation.encode(images, keys)
        mean, scale = teacher.representation.mean, teacher.representation.scale
        plain = x * scale + mean
        density = teacher.flow(context).log_prob((plain - mean) / scale)
        expected = (density - scale.log().sum()) / teacher.detector.pixels
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_training_noise_changes_with_the_epoch_and_validation_noise_does_not(showers):
    batch = {
        "particles": torch.from_numpy(showers.particles[:5]).float(),
        "images": torch.from_numpy(showers.images[:5]),
        "rows": torch.arange(5),
    }
    teacher = Teacher(flow=TINY, representation=PixelConfig())

    def encoded(step):
        images, _, keys = teacher.inputs(batch, step)
        return teacher.representation.encode(images, keys)[0]

    epochs = [encoded(epoch) for epoch in (-1, 0, 1)]
    for k in range(3):
        assert torch.equal(encoded(k - 1), epochs[k])
        assert not torch.allclose(epochs[k], epochs[k - 1])


def test_what_a_row_gets_does_not_depend_on_its_batch(run_folders, showers):
    teacher = load_module(run_folders["teacher"])
    particles = torch.from_numpy(showers.particles[:4]).float()
    total, rows = torch.from_numpy(showers.photon_sum[:4]), torch.tensor([7, 2**33, 9, 0])

    def sample(index):
        context = teacher.context(particles[index], total[index])
        base = rng.normal(rng.row_keys(rows[index], rng.BASE_STREAM, 3), 1936)
        with torch.no_grad():
            return teacher.flow(context).transform.inv(base)

    whole = sample(torch.arange(4))
    images = teacher.generate(particles, total, 3, rows)
    for index in (torch.tensor([2]), torch.tensor([3, 1]), torch.tensor([3, 2, 1, 0])):
        torch.testing.assert_close(sample(index), whole[index], rtol=REORDERED, atol=REORDERED)
        again = teacher.generate(particles[index], total[index], 3, rows[index])
        # A value within rounding of an integer may fall on its other side; hardly any does.
        assert (again != images[index]).float().mean() < REORDERED


def test_generation_follows_the_noise_removal_of_each_row(run_folders, showers):
    teacher = load_module(run_folders["teacher"])
    particles = torch.from_numpy(showers.particles[:4]).float()
    total = torch.tensor([0, 50, 500, 177_940])
    method = torch.tensor([1, 2, 3, 4])
    mixed = teacher.generate(particles, total, 0, torch.arange(4), method)
    assert mixed.shape == (4, 44, 44)
    assert mixed.dtype == torch.int64
    assert mixed.min() >= 0
    assert mixed[0].sum() == 0
    for k in range(4):
        assert torch.equal(mixed[k], teacher.generate(particles, total, 0, torch.arange(4), k + 1)[k])


class Uniform(ShowerModel):
    """The simplest model of showers: photons fall anywhere."""

    def __init__(self):
        super().__init__("zn", True, lambda p: torch.optim.SGD(p, lr=0.1), None)
        self.bias = torch.nn.Parameter(torch.zeros(44 * 44))

    def loss(self, batch, step=-1):
        light = batch["images"].flatten(1)
        return -(light * self.bias.log_softmax(0)).sum(1) / light.sum(1)

    def generate(self, particles, photon_sum, seed, rows, requantization=None):
        uniform = rng.uniform(rng.row_keys(rows, rng.BASE_STREAM, seed), 44 * 44)
        return (uniform * photon_sum[:, None] / 500).long().view(-1, 44, 44)


def test_a_kind_of_model_is_a_loss_and_images(root_file, tmp_path):
    """All else has an answer: steps, logs, standardizations, and that it has no likelihood, stages or graph."""
    model, data = Uniform(), RootDataModule(str(root_file), batch_size=16)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(**quiet, max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False)
    trainer.fit(model, data)
    assert bool(model.features.fitted)
    assert trainer.callback_metrics["val/loss"] < torch.tensor(44.0 * 44).log()
    assert set(trainer.test(model, data, verbose=False)[0]) == {"test/loss"}
    assert trainer.predict(model, data)[0]["images"].shape[1:] == (44, 44)
    assert model.stages("gauss") == []
    assert model.nll_unit is None
    assert model.not_exportable() == "it is a Uniform, which no graph is known of"
    with pytest.raises(ValueError, match="unknown requantization 1; expected none: counts come out exactly"):
        model.check_requantization(1)
    with pytest.raises(ValueError, match="nothing to requantize"):
        model.generate_points(*[torch.zeros(1)] * 2, 0, torch.zeros(1))
