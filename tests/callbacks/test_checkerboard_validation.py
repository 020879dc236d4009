"""The validation callback in a real trainer, on one process and on two, with small stand-ins for model and data."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch.utils.data import DataLoader, TensorDataset

from callbacks import CheckerboardValidation
from calosim.data.record import Showers
from calosim.detectors import DETECTORS
from calosim.metrics.wasserstein import CheckerboardWasserstein

ZN = DETECTORS["zn"]
ROWS = 61  # odd: two processes get unequal shares
PDG = np.array([22, 2112, 3122], dtype=np.int32)


class Data(pl.LightningDataModule):
    """A few sparse images; the loaders only keep the trainer busy."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        particles = rng.gamma(2.0, 100.0, (ROWS, 9))
        pdg = PDG[rng.choice(3, ROWS, p=[0.6, 0.3, 0.1])]
        images = rng.poisson(rng.gamma(0.05, 2.0, (ROWS, *ZN.shape))).astype(np.int16)
        self.val = Showers(particles, pdg, images, "zn")

    def showers(self, split, rows):
        assert split == "val"
        return self.val.select(rows)

    def primary_ids(self, split):
        assert split == "val"
        return np.arange(ROWS) // 2

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(4, 1)), batch_size=2)

    val_dataloader = train_dataloader


class Model(pl.LightningModule):
    """Scatters the photon sum evenly; the draws of a row depend on the seed and the row alone."""

    def __init__(self):
        super().__init__()
        self.detector = ZN
        self.layer = torch.nn.Linear(1, 1)
        self.dropout = torch.nn.Dropout()
        self.calls = []

    def generate(self, particles, photon_sum, seed, rows, requantization=None):
        assert not any(module.training for module in self.modules())
        assert not torch.is_grad_enabled()
        assert particles.dtype == photon_sum.dtype == torch.float32
        self.calls.append((self.trainer.current_epoch, seed, rows.tolist(), requantization))
        torch.manual_seed(0)  # a careless model must not disturb the training either
        np.random.seed(0)  # noqa: NPY002
        images = np.stack(
            [
                np.random.default_rng((seed, row)).multinomial(int(n), np.full(ZN.pixels, 1 / ZN.pixels))
                for row, n in zip(rows.tolist(), photon_sum.tolist(), strict=True)
            ]
        )
        return torch.as_tensor(images).reshape(-1, *ZN.shape)

    def training_step(self, batch):
        return self.layer(batch[0]).sum()

    def validation_step(self, batch):
        self.layer.train()  # a mixture of modes, to be found again

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


class Probe(pl.Callback):
    """Looks at modes and random states on both sides of the callback it encloses."""

    def __init__(self):
        self.states = []

    def on_validation_epoch_end(self, trainer, pl_module):
        modes = [module.training for module in pl_module.modules()]
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
        self.states.append((modes, torch.get_rng_state().tolist(), numpy_state, random.getstate()))


def fit(root, callbacks, devices=1, epochs=1, logger=False, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=epochs,
        default_root_dir=root,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    model, data = Model(), Data()
    trainer.fit(model, datamodule=data)
    return trainer, model, data


def logged(trainer):
    return {key: float(value).hex() for key, value in trainer.callback_metrics.items()}


pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # lightning 2.6 on torch 2.13
]


def test_logs_the_metric_of_exactly_the_chosen_rows(tmp_path):
    callback = CheckerboardValidation(
        rows=20, generations=3, pictures=0, convention="o2", requantization=1, seed=7, batch_size=8
    )
    trainer, model, data = fit(tmp_path, [callback])
    rows = sorted({row for _, _, chosen, _ in model.calls for row in chosen})
    assert len(rows) == 20
    assert sorted(row for _, _, chosen, _ in model.calls for row in chosen) == sorted(3 * rows)
    assert {seed for _, seed, _, _ in model.calls} == {7, 8, 9}
    assert {requantization for *_, requantization in model.calls} == {1}

    showers = data.val.select(rows)
    with torch.no_grad():
        model.eval()
        sums, ids = torch.as_tensor(showers.photon_sum).float(), torch.as_tensor(rows)
        generated = [model.generate(sums, sums, seed, ids) for seed in (7, 8, 9)]
    metric = CheckerboardWasserstein("zn", "o2")
    metric.update(
        ZN.channels(torch.stack(generated, 1), "o2"),
        torch.as_tensor(ZN.channels(showers.images, "o2")),
        torch.as_tensor(showers.pdg),
        torch.as_tensor(rows),
    )
    expected = {"val/ws" if k == "all" else f"val/ws_{k}": float(v) for k, v in metric.compute().items()}
    assert {"val/ws", "val/ws_common", "val/ws_tower4", "val/ws_gamma"} <= expected.keys()
    assert {k: float(v) for k, v in trainer.callback_metrics.items()} == expected


def test_skips_the_sanity_check_and_other_epochs(tmp_path):
    _, model, _ = fit(
        tmp_path, [CheckerboardValidation(every_n_epochs=2, pictures=0)], epochs=4, num_sanity_val_steps=1
    )
    assert [epoch for epoch, *_ in model.calls] == [0, 2]
    assert len(model.calls[0][2]) == ROWS  # fewer rows than asked for: all of them
    assert model.calls[0][1:] == model.calls[1][1:]


def test_validate_alone_always_generates(tmp_path):
    trainer, model, data = fit(tmp_path, [CheckerboardValidation(every_n_epochs=2, pictures=0)], epochs=1)
    model.calls.clear()
    assert "val/ws" in trainer.validate(model, datamodule=data, verbose=False)[0]
    assert len(model.calls) == 1


def test_leaves_modes_and_random_states_alone(tmp_path):
    before, after = Probe(), Probe()
    fit(tmp_path, [before, CheckerboardValidation(pictures=2), after], num_sanity_val_steps=0)
    assert len(before.states) == 1
    assert before.states[0][0] == [False, True, False], "the test must see a mixture of modes"
    assert before.states == after.states


def test_draws_the_same_primaries_in_every_epoch(tmp_path):
    _, model, data = fit(tmp_path, [CheckerboardValidation(pictures=5)], epochs=2)
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [p.name for p in pictures] == ["epoch=000.png", "epoch=001.png"]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()  # this model never learns
    drawn = next(rows for _, _, rows, _ in model.calls if len(rows) == 5)
    types = data.val.pdg[drawn].tolist()
    assert types == [*PDG, *PDG[:2]]


def test_hands_the_picture_to_wandb(tmp_path):
    class Recorder(WandbLogger):
        """A W&B logger without W&B."""

        def __init__(self):
            self.images = []

        name = version = save_dir = experiment = property(lambda self: None)
        log_metrics = log_hyperparams = log_graph = save = after_save_checkpoint = finalize = lambda self, *_, **__: (
            None
        )

        def log_image(self, key, images, step=None, **kwargs):
            self.images.append((key, images, step))

    recorder = Recorder()
    fit(tmp_path, [CheckerboardValidation(pictures=1)], logger=[CSVLogger(tmp_path), recorder])
    assert recorder.images == [("val/pictures", [str(tmp_path / "pictures" / "epoch=000.png")], 2)]


@pytest.mark.parametrize("rows", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_two_processes_equal_one_exactly(tmp_path, rows):
    """With a single row the second process has none."""
    command = [sys.executable, __file__, str(tmp_path / "two"), str(rows or 0)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    trainer, model, _ = fit(tmp_path / "one", [CheckerboardValidation(rows=rows, generations=2)])
    shares = []
    for rank in range(2):
        result = json.loads((tmp_path / "two" / f"{rank}.json").read_text())
        assert result["logged"] == logged(trainer)
        shares.append(result["rows"])
    everything = [row for _, seed, chosen, _ in model.calls[:1] for row in chosen]
    assert sorted(shares[0] + shares[1]) == everything  # disjoint, and together all of them
    pictures = [tmp_path / run / "pictures" / "epoch=000.png" for run in ("one", "two")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


@pytest.mark.parametrize("option", ["every_n_epochs", "rows", "generations", "batch_size"])
def test_bad_options_are_named(option):
    with pytest.raises(ValueError, match=f"{option} of at least 1, got 0"):
        CheckerboardValidation(**{option: 0})


def test_a_picture_that_fails_ends_no_training(tmp_path, monkeypatch, capsys):
    def fail(figure, path):
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr("calosim.plots.responses.save", fail)
    trainer, _, _ = fit(tmp_path, [CheckerboardValidation(pictures=1)])
    assert "was not drawn (RuntimeError: latex could not be found)" in capsys.readouterr().err
    assert trainer.callback_metrics["val/ws"] > 0


if __name__ == "__main__":
    root, size = Path(sys.argv[1]), int(sys.argv[2]) or None
    trainer, model, _ = fit(root, [CheckerboardValidation(rows=size, generations=2)], devices=2)
    # The first call with the first seed is the share of the process; pictures come last, on the first process only.
    generations = [rows for _, seed, rows, _ in model.calls if seed == 1]
    (root / f"{trainer.global_rank}.json").write_text(
        json.dumps({"logged": logged(trainer), "rows": generations[0] if generations else []})
    )
