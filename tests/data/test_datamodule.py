"""Splits: no row twice, none lost, no primary in two of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from calosim.data import Showers, read, write
from calosim.data.datamodule import EpochSampler, RootDataModule
from calosim.data.splits import SPLITS, ShowerData, split_rows
from calosim.particles import particle_name

#: Shares of a split by response, of 1000 rows: rounded to one row.
ROW = 1e-3


def many_primaries(rows: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of primaries and PDG codes: four types with 5 to 300 primaries, unequal numbers of responses."""
    rng = np.random.default_rng(seed)
    pdg_of_primary = np.repeat([22, 2112, 3122, 3222], [300, 100, 20, 5])
    primary_ids = np.concatenate([np.arange(425), rng.choice(425, rows - 425, p=rng.dirichlet(np.ones(425)))])
    primary_ids = rng.permutation(primary_ids)
    return primary_ids, pdg_of_primary[primary_ids]


@pytest.mark.parametrize("by", ["primary", "response"])
@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.2), (0.34, 0.33, 0.33), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5)])
@pytest.mark.parametrize("rows", [425, 426, 3001])
def test_every_row_is_in_exactly_one_split(by, fractions, rows):
    primary_ids, pdg = many_primaries(rows)
    splits = split_rows(primary_ids, pdg, by, fractions, seed=3)
    assert list(splits) == list(SPLITS)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(rows))
    for part in splits.values():
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.2), (0.0, 0.5, 0.5), (0.2, 0.4, 0.4)])
@pytest.mark.parametrize("by", ["primary", "response"])
def test_few_rows_are_each_in_exactly_one_split(count, fractions, by):
    splits = split_rows(np.arange(count), np.full(count, 22), by, fractions)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(count))


def test_fractions_of_a_split_by_response():
    splits = split_rows(np.zeros(1000, int), np.zeros(1000, int), "response")
    assert [len(splits[s]) / 1000 for s in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=ROW)


def test_fractions_of_a_split_by_primary_hold_for_the_inputs_of_each_type():
    primary_ids, pdg = many_primaries()
    splits = split_rows(primary_ids, pdg)
    for code in np.unique(pdg):
        total = len(np.unique(primary_ids[pdg == code]))
        for name, fraction in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
            rows = splits[name]
            assert abs(len(np.unique(primary_ids[rows][pdg[rows] == code])) - fraction * total) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_split_by_primary_shares_no_input(seed):
    primary_ids, pdg = many_primaries(seed=seed)
    sets = [set(primary_ids[rows]) for rows in split_rows(primary_ids, pdg, seed=seed).values()]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]


def test_a_split_by_response_shares_inputs():
    primary_ids, pdg = many_primaries()
    splits = split_rows(primary_ids, pdg, "response")
    assert set(primary_ids[splits["train"]]) & set(primary_ids[splits["test"]])


@pytest.mark.parametrize("count", range(5, 40))
def test_a_type_with_five_inputs_reaches_every_split(count):
    primary_ids, pdg = np.arange(100 + count), np.repeat([22, 3222], [100, count])
    for rows in split_rows(primary_ids, pdg, seed=count).values():
        assert (pdg[rows] == 3222).any()


def test_a_split_is_decided_by_its_seed():
    primary_ids, pdg = many_primaries()
    first, again, other = (split_rows(primary_ids, pdg, seed=s) for s in (1, 1, 2))
    for name in SPLITS:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["train"], other["train"])


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.1), (0.7, 0.3), (1.2, -0.1, -0.1), (0.5, float("nan"), 0.5)])
def test_impossible_fractions_are_named(fractions):
    with pytest.raises(ValueError, match="three split fractions that sum to 1"):
        split_rows(np.arange(9), np.zeros(9), fractions=fractions)


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="unknown split 'event'; expected primary or response"):
        split_rows(np.arange(9), np.zeros(9), by="event")


def samplers(groups: np.ndarray, batch_size: int, world: int, epoch: int = 0, **options) -> list[EpochSampler]:
    result = [EpochSampler(groups, batch_size, num_replicas=world, rank=r, **options) for r in range(world)]
    for sampler in result:
        sampler.set_epoch(epoch)
    return result


def groups_of(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([22, 2112, 3122], rows, p=[0.7, 0.25, 0.05])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 47, 48, 49, 50, 240])
@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_processes_take_equally_many_steps_and_lose_less_than_one_row_each(world, rows, power):
    ranks = [list(s) for s in samplers(groups_of(rows), 8, world, power=power)]
    assert len({len(batches) for batches in ranks}) == 1  # or DDP would wait forever
    assert [len(b) for b in ranks] == [len(s) for s in samplers(groups_of(rows), 8, world, power=power)]
    for batches in ranks:
        assert all(1 <= len(batch) <= 8 for batch in batches)
    drawn = np.concatenate([batch for batches in ranks for batch in batches] or [np.array([], int)])
    assert rows - world < len(drawn) <= rows
    if power == 1.0:
        assert len(np.unique(drawn)) == len(drawn)  # disjoint, and no row twice


@pytest.mark.parametrize("power", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("rows", [240, 241, 250])
def test_two_processes_see_the_global_batches_of_one_with_twice_the_batch_size(power, rows):
    groups = groups_of(rows)
    single = list(samplers(groups, 16, 1, epoch=3, power=power)[0])
    double = list(zip(*samplers(groups, 8, 2, epoch=3, power=power), strict=True))
    assert len(single) - len(double) in (0, 1)  # a rest of one row is dropped on two processes
    for one, (first, second) in zip(single, double, strict=False):
        np.testing.assert_array_equal(np.sort(one), np.sort(np.concatenate([first, second])))
        assert abs(len(first) - len(second)) <= 1


@pytest.mark.parametrize("power", [1.0, 0.3, 0.0])
def test_an_epoch_repeats_itself_and_differs_from_the_next(power):
    groups = groups_of(200)

    def order(epoch, seed=0):
        return np.concatenate(list(samplers(groups, 16, 1, epoch=epoch, power=power, seed=seed)[0]))

    np.testing.assert_array_equal(order(4), order(4))
    assert not np.array_equal(order(4), order(5))
    assert not np.array_equal(order(4), order(4, seed=1))
    # (seed, epoch) is a pair: seed 4 in epoch 0 is not seed 0 in epoch 4.
    assert not np.array_equal(order(0, seed=4), order(4, seed=0))


@pytest.mark.parametrize("rows", [100, 101, 997])
def test_balanced_sampling_draws_equal_shares(rows):
    groups = groups_of(rows)
    counts = np.unique(groups[EpochSampler(groups, 8, power=0.0).order()], return_counts=True)[1]
    assert counts.sum() == rows
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("power", [1.0, 1.0 - 1e-12, 0.7, 0.25])
def test_shares_follow_the_power(power):
    groups = groups_of(2000)
    sizes = np.unique(groups, return_counts=True)[1]
    drawn = np.unique(groups[EpochSampler(groups, 8, power=power).order()], return_counts=True)[1]
    expected = sizes**power / (sizes**power).sum() * len(groups)
    assert np.abs(drawn - expected).max() <= 1


@pytest.mark.parametrize("power", [0.0, 0.4])
def test_rows_repeat_only_after_all_of_their_group_were_used(power):
    groups = groups_of(1000)
    times = np.bincount(EpochSampler(groups, 8, power=power).order(), minlength=1000)
    for group in np.unique(groups):
        assert np.ptp(times[groups == group]) <= 1


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 1, 5, 16, 17, 24, 25, 49])
def test_evaluation_covers_every_row_once(world, rows):
    ranks = [list(s) for s in samplers(groups_of(rows), 8, world, shuffle=False, power=0.0)]
    assert [len(b) for b in ranks] == [len(s) for s in samplers(groups_of(rows), 8, world, shuffle=False)]
    for batches in ranks:
        assert all(len(batch) for batch in batches)
        assert all(a[-1] < b[0] for a, b in pairwise(batches))
    drawn = [batch for batches in ranks for batch in batches] or [np.array([], int)]
    np.testing.assert_array_equal(np.sort(np.concatenate(drawn)), np.arange(rows))


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
                "primary_ids": torch.int64,
                "photon_sum": torch.int64,
                "rows": torch.int64,
            }
            np.testing.assert_array_equal(batch["images"], showers.images[rows])
            np.testing.assert_array_equal(batch["particles"], showers.particles[rows].astype(np.float32))
            np.testing.assert_array_equal(batch["pdg"], showers.pdg[rows])
            np.testing.assert_array_equal(batch["primary_ids"], stored.primary_ids[rows])
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
def test_showers_and_primaries_of_a_split(module, showers, split):
    rows = module.rows(split)
    part = module.showers(split)
    assert isinstance(part, Showers)
    np.testing.assert_array_equal(part.images, showers.images[rows])
    np.testing.assert_array_equal(module.primary_ids(split), showers.primary_ids[rows])
    some = np.array([3, 0, 2])
    np.testing.assert_array_equal(module.showers(split, some).particles, showers.particles[rows[some]])
    others = np.concatenate([module.primary_ids(s) for s in SPLITS if s != split])
    assert not set(module.primary_ids(split)) & set(others)


def test_several_files_are_one_data_set(showers, tmp_path):
    halves = [showers.select(slice(0, 150)), showers.select(slice(150, None))]
    files = []
    for k, half in enumerate(halves):
        files.append(str(tmp_path / f"{k}.root"))
        write(files[-1], half)
    module = RootDataModule(files)
    everything = np.sort(np.concatenate([module.rows(s) for s in SPLITS]))
    np.testing.assert_array_equal(everything, np.arange(len(showers)))
    # A primary with responses in both files is one primary.
    np.testing.assert_array_equal(module.arrays["primary_ids"], showers.primary_ids)
    np.testing.assert_array_equal(module.arrays["images"], showers.images)


def test_the_data_of_a_training_are_found_by_its_settings(root_file):
    settings = {
        "files": [str(root_file)],
        "particle": "gamma",
        "seed": 3,
        "split_by": "response",
        "fractions": [0.5, 0.2, 0.3],
    }
    module = RootDataModule(**settings, batch_size=7, sampling="balanced")
    data = ShowerData.of({**settings, "batch_size": 7, "sampling": "balanced"})
    assert data == module.data == ShowerData.of({**settings, "particle": None}, particle=22)
    for split in SPLITS:
        np.testing.assert_array_equal(data.rows(split), module.rows(split))
    assert data.describe() == module.data.describe()
    assert data != ShowerData.of({**settings, "seed": 4})


def test_data_are_read_without_torch(root_file):
    words = f"import sys; from calosim.data.splits import ShowerData; print(len(ShowerData({str(root_file)!r}).rows('test')))"
    words += "; print([name for name in ('torch', 'lightning') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout.split("\n")
    assert (said[0], said[1]) == (str(len(RootDataModule(str(root_file)).rows("test"))), "[]")


def test_description_for_the_run_folder(module, root_file, showers):
    module.setup()
    text = json.loads(json.dumps(module.data.describe()))
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


def test_empty_rows_are_left_out_after_the_split_unless_asked_for(dark_file):
    with_empty, without = (RootDataModule(str(dark_file), min_photons=least) for least in (0, 10))
    for split in SPLITS:
        every = with_empty.rows(split)
        nonempty = with_empty.arrays["photon_sum"][every] >= 10
        assert not nonempty.all()
        assert np.array_equal(without.rows(split), every[nonempty])


def test_a_model_without_images_gets_none(module):
    from types import SimpleNamespace

    model = SimpleNamespace(with_images=False)
    module.trainer = SimpleNamespace(world_size=1, global_rank=0, lightning_module=model, overfit_batches=0)
    assert "images" not in next(iter(module.val_dataloader()))
