"""The loss scaler in a real trainer: the weights' formulas, where they arrive, artefacts, and resuming."""

from __future__ import annotations

import csv

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from callbacks import PhysicsLossScaler
from callbacks.physics_loss_scaler import row_diversity
from calosim.data.datamodule import RootDataModule
from calosim.metrics.conditional import diversity
from calosim.particles import particle_name

KEYS = {"physics": "physics_weight", "all": "loss_weight"}


class Model(pl.LightningModule):
    """Keeps what arrives in its steps, and learns something that depends on the weights."""

    row_weights = ("loss_weight", "physics_weight")

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(()))
        self.seen = {}

    def training_step(self, batch):
        (key,) = set(batch) & set(KEYS.values())
        self.seen |= dict(zip(batch["rows"].tolist(), batch[key].tolist(), strict=True))
        return (batch[key] * (self.theta - batch["images"].flatten(1).sum(1).float().log()).square()).mean()

    def validation_step(self, batch):
        assert not set(batch) & set(KEYS.values())
        self.log("val/loss", torch.zeros(()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)


class Ignorant(Model):
    row_weights = ("loss_weight",)


def fit(callback, file, folder, model=None, epochs=1, ckpt_path=None, **data):
    model = model or Model()
    checkpoints = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[callback, checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    datamodule = RootDataModule(str(file), batch_size=40, **data)
    trainer.fit(model, datamodule, ckpt_path=ckpt_path)
    return model, datamodule


@pytest.mark.parametrize("scope", ["physics", "all"])
@pytest.mark.parametrize("mode", ["inverted", "reciprocal"])
def test_every_row_meets_its_weight_in_the_training_step(mode, scope, root_file, tmp_path):
    model, datamodule = fit(PhysicsLossScaler(mode, scope, epsilon=0.2), root_file, tmp_path)
    rows, inputs = datamodule.rows("train"), datamodule.primary_ids("train")
    found = diversity(datamodule.showers("train").images, inputs, normalized=True, quantile=0.99)
    assert (found.responses > 1).all()  # of this file
    f = found.value[np.searchsorted(found.primary_id, inputs)]
    expected = 1 - f if mode == "inverted" else 1 / (f + 0.2)
    expected /= expected.mean()
    assert sorted(model.seen) == rows.tolist()
    np.testing.assert_allclose([model.seen[r] for r in rows], expected, rtol=1e-5)
    assert np.mean(list(model.seen.values())) == pytest.approx(1.0, rel=1e-5)
    assert np.ptp(expected) > 0.5


def test_what_was_computed_is_recorded(root_file, tmp_path):
    model, datamodule = fit(PhysicsLossScaler(scope="all"), root_file, tmp_path)
    lines = list(csv.DictReader((tmp_path / "diversity.csv").read_text().splitlines()))
    inputs, pdg = datamodule.primary_ids("train"), datamodule.showers("train").pdg
    assert [int(line["input"]) for line in lines] == np.unique(inputs).tolist()
    for line in lines:
        at = np.flatnonzero(inputs == int(line["input"]))
        assert line["particle"] == particle_name(int(pdg[at[0]]))
        assert int(line["responses"]) == len(at)
        assert float(line["weight"]) == pytest.approx(model.seen[int(datamodule.rows("train")[at[0]])], rel=1e-4)


@pytest.fixture
def responses():
    """300 inputs of two types, four responses each, whose brightness and so diversity varies; and twice as many rows."""
    rng = np.random.default_rng(0)
    inputs = np.repeat(np.arange(300), 4)
    images = rng.poisson(rng.gamma(2.0, 20.0, (300, 1, 1)).repeat(4, 0), (1200, 3, 5))
    every = rng.integers(0, 1000, (2400, 3, 5))
    rows = np.arange(1, 2400, 2)
    every[rows] = images
    return every, rows, inputs, np.where(inputs % 2, 22, 2112)


def test_inputs_with_one_response_get_the_mean_of_their_type(responses):
    images, rows, inputs, pdg = responses
    kept = (inputs >= 30) | (np.arange(1200) % 4 == 0)
    single = inputs[kept] < 30
    pdg = np.where(inputs == 6, 3122, pdg)  # a type without any other input
    f = row_diversity(images, rows[kept], inputs[kept], pdg[kept], 0.99)
    alone = row_diversity(images, rows[inputs >= 30], inputs[inputs >= 30], pdg[inputs >= 30], 0.99)
    np.testing.assert_array_equal(f[~single], alone)  # what has no diversity does not touch the scale
    for code in (22, 2112):
        of_type = pdg[kept] == code
        np.testing.assert_allclose(f[single & of_type], f[~single & of_type].mean(), rtol=1e-12)
    np.testing.assert_allclose(f[pdg[kept] == 3122], alone.mean(), rtol=1e-12)
    assert not row_diversity(images, rows[::4], inputs[::4], pdg[::4], 0.99).any()  # no input has two


def test_an_artefact_does_not_set_the_scale(responses):
    images, rows, inputs, pdg = responses
    plain = row_diversity(images, rows, inputs, pdg, 0.99)
    bad = images.copy()
    bad[rows[5], 1, 1] = 150_000
    others = inputs != inputs[5]
    np.testing.assert_allclose(row_diversity(bad, rows, inputs, pdg, 0.99)[others], plain[others], atol=0.05)
    assert row_diversity(bad, rows, inputs, pdg, 1.0)[others].max() < 0.05  # the published scale, the maximum


def test_a_resumed_run_goes_on_as_if_uninterrupted(root_file, tmp_path):
    whole, _ = fit(PhysicsLossScaler(), root_file, tmp_path / "whole", epochs=2)
    record = (tmp_path / "whole" / "diversity.csv").read_bytes()
    fit(PhysicsLossScaler(), root_file, tmp_path / "parts")
    resumed, _ = fit(
        PhysicsLossScaler(), root_file, tmp_path / "parts", epochs=2, ckpt_path=tmp_path / "parts/epoch=0.ckpt"
    )
    assert torch.equal(resumed.theta, whole.theta)
    assert (tmp_path / "parts" / "diversity.csv").read_bytes() == record


def test_a_module_that_would_ignore_the_weights_is_refused(root_file, tmp_path):
    with pytest.raises(ValueError, match="Ignorant uses no physics_weight"):
        fit(PhysicsLossScaler(), root_file, tmp_path, Ignorant())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "other"}, "expected mode to be inverted or reciprocal, got 'other'"),
        ({"scope": "none"}, "expected scope"),
        ({"epsilon": 0.0}, "positive epsilon"),
        ({"quantile": 0.0}, "quantile in"),
    ],
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        PhysicsLossScaler(**arguments)
