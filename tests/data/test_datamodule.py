"""Batches hold the rows of the files, of one split and one selection, the same on one process and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from calosim.particles import particle_name
from calosim.data import Showers, read, write
from calosim.data.datamodule import RootDataModule, describe
from calosim.data.datamodule import SPLITS

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def module(root_file) -> RootDataModule:
    return RootDataModule(str(root_file), "zn", batch_size=16)


def test_batches_hold_the_rows_of_the_file(module, showers):
    stored = read(module.files[0])
    for split, loader in (("train", module.train_dataloader()), ("val", module.val_dataloader())):
        seen = []
        for batch in loader:
            rows = batch["rows"].numpy()
            seen += rows.tolist()
            assert len(rows) <= 16
            assert {n: t.dtype for n, t in batch.items()} == {
                "particles": torch.float32,
                "pdg": torch.int64,
                "images": torch.int16,
                "inputs": torch.int64,
                "photon_sum": torch.int64,
                "rows": torch.int64,
            }
            np.testing.assert_array_equal(batch["images"], showers.images[rows])
            np.testing.assert_array_equal(batch["particles"], showers.particles[rows].astype(np.float32))
            np.testing.assert_array_equal(batch["pdg"], showers.pdg[rows])
            np.testing.assert_array_equal(batch["inputs"], stored.inputs[rows])
            np.testing.assert_array_equal(batch["photon_sum"], showers.photon_sum[rows])
        assert sorted(seen) == module.rows(split).tolist()


def test_a_batch_is_writable_and_not_the_cache(module):
    batch = next(iter(module.val_dataloader()))
    before = module.arrays["images"][batch["rows"].numpy()].copy()
    batch["images"] += 1
    np.testing.assert_array_equal(module.arrays["images"][batch["rows"].numpy()], before)


def test_images_stay_in_the_file_and_integer(module):
    for loader in (module.train_dataloader(), module.test_dataloader(), module.predict_dataloader()):
        assert isinstance(loader, DataLoader)
        images = loader.dataset.arrays["images"]
        assert isinstance(images, np.memmap)
        assert images.dtype == np.int16
        assert not images.flags.writeable


def test_sampling_by_name(root_file):
    powers = {"natural": 1.0, "balanced": 0.0, "power": 0.3}
    for sampling, power in powers.items():
        module = RootDataModule(str(root_file), sampling=sampling, sampling_power=0.3)
        assert module.train_dataloader().sampler.power == power
    balanced = RootDataModule(str(root_file), sampling="balanced", batch_size=10_000)
    (batch,) = list(balanced.train_dataloader())
    counts = batch["pdg"].unique(return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
    # Evaluation keeps the natural mix: every row once.
    assert sum(len(b["rows"]) for b in balanced.val_dataloader()) == len(balanced.rows("val"))


@pytest.mark.parametrize("particle", ["lambda", 3122, "3122", "Lambda"])
def test_a_filter_selects_within_the_same_split(module, root_file, particle):
    filtered = RootDataModule(str(root_file), particle=particle)
    for split in SPLITS:
        rows = module.rows(split)
        expected = rows[module.showers(split).pdg == 3122]
        np.testing.assert_array_equal(filtered.rows(split), expected)
        assert len(expected)
    assert {int(c) for batch in filtered.train_dataloader() for c in batch["pdg"]} == {3122}


@pytest.mark.parametrize("split", SPLITS)
def test_showers_and_inputs_of_a_split(module, showers, split):
    rows = module.rows(split)
    part = module.showers(split)
    assert isinstance(part, Showers)
    np.testing.assert_array_equal(part.images, showers.images[rows])
    np.testing.assert_array_equal(module.inputs(split), showers.inputs[rows])
    some = np.array([3, 0, 2])
    np.testing.assert_array_equal(module.showers(split, some).particles, showers.particles[rows[some]])
    others = np.concatenate([module.inputs(s) for s in SPLITS if s != split])
    assert not set(module.inputs(split)) & set(others)


def test_several_files_are_one_data_set(showers, tmp_path):
    halves = [showers.select(slice(0, 150)), showers.select(slice(150, None))]
    files = []
    for k, half in enumerate(halves):
        files.append(str(tmp_path / f"{k}.root"))
        write(files[-1], half)
    module = RootDataModule(files)
    everything = np.sort(np.concatenate([module.rows(s) for s in SPLITS]))
    np.testing.assert_array_equal(everything, np.arange(len(showers)))
    # An input with responses in both files is one input.
    np.testing.assert_array_equal(module.arrays["inputs"], showers.inputs)
    np.testing.assert_array_equal(module.arrays["images"], showers.images)


def test_description_for_the_run_folder(module, root_file, showers):
    module.setup()
    text = json.loads(json.dumps(describe(module)))
    assert text["files"] == [str(root_file)]
    assert sum(text["rows"].values()) == len(showers)
    assert (text["detector"], text["split_by"], text["particle"], text["seed"]) == ("zn", "primary", None, 0)
    assert len(text["data_hash"]) == 32
    assert text["fractions"] == [0.7, 0.1, 0.2]  # without it nobody knows the test rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": []}, "at least one data file"),
        ({"batch_size": 0}, "batch size of at least 1, got 0"),
        ({"detector": "zem"}, "unknown detector 'zem'"),
        ({"particle": 123456789}, "unknown PDG code 123456789"),
    ],
)
def test_impossible_options_are_named_at_once(root_file, arguments, message):
    with pytest.raises(ValueError, match=message):
        RootDataModule(**{"files": str(root_file), **arguments})


def test_bad_selections_and_files_get_one_clear_line(root_file, tmp_path):
    cases = [
        (RootDataModule(str(root_file), particle="k0l"), rf"{root_file}: no row of particle k0l; .* gamma, neutron"),
        (RootDataModule(str(root_file), detector="zp"), str(root_file)),
        (RootDataModule(str(tmp_path / "no.root")), "no.root: no such file"),
        (RootDataModule(str(root_file), fractions=(0.0, 0.5, 0.5)), "selected rows is in the training split"),
    ]
    for module, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            module.setup("fit")
        assert "\n" not in str(caught.value)


def test_present_particles_are_named_by_their_short_names(root_file, showers):
    module = RootDataModule(str(root_file), particle=130)
    with pytest.raises(ValueError, match=", ".join(particle_name(int(c)) for c in np.unique(showers.pdg))):
        module.setup()


# Two processes

TRAIN = """
import json, sys
import torch
from lightning import LightningModule, Trainer
from torchmetrics import MeanMetric
from calosim.data.datamodule import RootDataModule


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(9, 1)
        self.register_buffer("scale", torch.ones(9))
        self.mean = MeanMetric()
        self.train_rows, self.val_rows = [], []

    def training_step(self, batch, batch_idx):
        self.train_rows[-1].append(batch["rows"].tolist())
        return self.linear(torch.tanh(batch["particles"]) * self.scale).square().mean()

    def on_train_epoch_start(self):
        self.train_rows.append([])

    def on_validation_epoch_start(self):
        self.val_rows.append([])

    def validation_step(self, batch, batch_idx):
        self.val_rows[-1].append(batch["rows"].tolist())
        self.mean.update(batch["rows"].double())
        self.log("val/loss", self.mean)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def on_fit_end(self):
        result = {"train": self.train_rows, "val": self.val_rows, "weights": self.linear.weight[0].tolist(),
                  "loss": float(self.trainer.callback_metrics["val/loss"])}
        with open(f"{file}.{self.trainer.global_rank}.json", "w") as stream:
            json.dump(result, stream)


if __name__ == "__main__":
    file, sampling = sys.argv[1:]
    module, data = Tiny(), RootDataModule(file, batch_size=7, sampling=sampling)
    # Forked: what takes the time is importing, once here and not once for each process.
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, data)
"""


@pytest.mark.parametrize("sampling", ["natural", pytest.param("balanced", marks=pytest.mark.slow)])
def test_two_ddp_processes_train_like_one(root_file, tmp_path, sampling):
    path = tmp_path / "zn.root"
    path.write_bytes(root_file.read_bytes())
    (tmp_path / "train.py").write_text(TRAIN)
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(tmp_path / "train.py"), str(path), sampling]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads(Path(f"{path}.{r}.json").read_text()) for r in range(2)]
    alone = RootDataModule(str(path), batch_size=14, sampling=sampling)
    for epoch in range(2):
        first, second = (r["train"][epoch] for r in ranks)
        assert len(first) == len(second)
        drawn = [row for batches in (first, second) for batch in batches for row in batch]
        if sampling == "natural":
            assert len(set(drawn)) == len(drawn)
            assert len(drawn) >= len(alone.rows("train")) - 1
        loader = alone.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for mine, others, whole in zip(first, second, loader, strict=False):
            assert sorted(mine + others) == sorted(whole["rows"].tolist())
    assert ranks[0]["train"][0] != ranks[0]["train"][1]  # set_epoch was called
    rows = [row for r in ranks for batch in r["val"][-1] for row in batch]
    assert sorted(rows) == alone.rows("val").tolist()
    assert ranks[0]["loss"] == ranks[1]["loss"] == pytest.approx(np.mean(rows))
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_dark_rows_are_left_out_after_the_split_unless_asked_for(dark_file):
    with_dark, without = (RootDataModule(str(dark_file), min_photons=least) for least in (0, 10))
    for split in SPLITS:
        every = with_dark.rows(split)
        nonempty = with_dark.arrays["photon_sum"][every] >= 10
        assert not nonempty.all()
        assert np.array_equal(without.rows(split), every[nonempty])


def test_a_model_without_images_gets_none(module):
    from types import SimpleNamespace

    model = SimpleNamespace(with_images=False)
    module.trainer = SimpleNamespace(world_size=1, global_rank=0, lightning_module=model, overfit_batches=0)
    assert "images" not in next(iter(module.val_dataloader()))
