"""Checkpoints that explain themselves, training that survives being killed, rows that do not know their batch."""

from __future__ import annotations

import functools
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from calosim import draws
from calosim.models.base import CalosimModule, evaluating, fit_sample
from calosim.models.checkpoints import checkpoint_path, load_module
from calosim.models.photons import PhotonSum
from calosim.models.shape import ShapeModule
from calosim.models.teacher import Teacher
from calosim.shapes.pixels import ShapeLogits
from calosim.showers.datamodule import RootDataModule

#: Logits of one row in batches of different size: float32 matrix products sum in another order.
REORDERED = 1e-3

halving = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
MODULES = {
    "teacher": lambda: Teacher(transforms=1, hidden=(8, 8), bins=4, dropout=0.2, scheduler=halving),
    "photons": lambda: PhotonSum(hidden=(8, 8), components=3, posterior_samples=2, scheduler=halving),
}
every = pytest.mark.parametrize("name", MODULES)


def output(module: CalosimModule, showers, seed: int = 5) -> torch.Tensor:
    particles = torch.from_numpy(showers.particles[:3]).float()
    if isinstance(module, PhotonSum):
        return module.sample(particles, seed, torch.arange(3))
    return module.generate(particles, torch.from_numpy(showers.photon_sum[:3]), seed, torch.arange(3), 1)


# -- checkpoints ------------------------------------------------------------------------------------------------------


@every
def test_a_checkpoint_rebuilds_the_module(run_folders, showers, name):
    folder = run_folders[name]
    path = folder / "checkpoints" / "best.ckpt"
    torch.load(path, weights_only=True)
    module, again = load_module(folder), load_module(path)
    assert not module.training
    assert type(module) is type(MODULES[name]())
    assert bool(module.features.fitted)
    assert module.init == again.init
    for (key, one), (other_key, two) in zip(module.state_dict().items(), again.state_dict().items(), strict=True):
        assert key == other_key
        assert torch.equal(one, two)
    assert torch.equal(output(module, showers), output(again, showers))


@every
def test_a_checkpoint_holds_the_trained_weights_and_standardizations(root_file, tmp_path, fit, name):
    module = MODULES[name]()
    fit(module, root_file, tmp_path)
    loaded = load_module(tmp_path)
    for key, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert {**loaded.init} == {**module.init}


def test_best_comes_before_last(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"expected a checkpoint or a run folder with checkpoints/best\.ckpt"):
        checkpoint_path(tmp_path)
    for name in ("last.ckpt", "best.ckpt"):
        path = tmp_path / "checkpoints" / name
        path.write_text("")
        assert checkpoint_path(tmp_path) == path
        assert checkpoint_path(path) == path


class _Code:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


FOREIGN = {
    "text": (b"not a checkpoint", r"expected a checkpoint, but it cannot be read"),
    "empty": (b"", r"expected a checkpoint, but it cannot be read"),
    "code": ({"calosim": _Code()}, r"expected a checkpoint, but it cannot be read"),
    "list": ([1, 2], r"found no `calosim` entry"),
    "other": ({"state_dict": {}, "pytorch-lightning_version": "2"}, r"found no `calosim` entry"),
    "torch": ({"calosim": {"class": "torch.nn.Identity", "init": {}}}, r"a module of calosim, got torch.nn.Identity"),
    "similar": ({"calosim": {"class": "calosimx.M", "init": {}}}, r"a module of calosim, got calosimx.M"),
    "gone": ({"calosim": {"class": "calosim.gone.Gone", "init": {}}}, r"a module of calosim, got calosim.gone.Gone"),
    "removed": (
        {"calosim": {"class": "calosim.models.base.Old", "init": {}}},
        r"a module of calosim, got calosim.models.base.Old",
    ),
    "part": (
        {"calosim": {"class": "calosim.shapes.pixels.ShapeLogits", "init": {"shape": (4, 4)}}, "state_dict": {}},
        r"a module of calosim, got calosim.shapes.pixels.ShapeLogits",
    ),
    "weights": (
        {"calosim": {"class": "calosim.models.photons.PhotonSum", "init": {"hidden": [3]}}, "state_dict": {}},
        r"its weights do not fit calosim.models.photons.PhotonSum \(.*Missing key",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_get_one_clear_line(tmp_path, capsys, kind):
    content, message = FOREIGN[kind]
    path = tmp_path / f"{kind}.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"{kind}\.ckpt: .*{message}") as caught:
        load_module(path)
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out


def test_a_checkpoint_cannot_call_functions_of_calosim(tmp_path):
    target = tmp_path / "written.txt"
    entry = {"class": "calosim.files.atomic_write", "init": {"path": str(target), "content": "hello"}}
    torch.save({"calosim": entry, "state_dict": {}}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="expected a module of calosim"):
        load_module(tmp_path / "evil.ckpt")
    assert not target.exists()


def test_a_truncated_checkpoint_gets_one_clear_line(run_folders, tmp_path):
    path = tmp_path / "cut.ckpt"
    content = (run_folders["photons"] / "checkpoints" / "best.ckpt").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.ckpt: expected a checkpoint, but it cannot be read \(.+\)"):
        load_module(path)


def test_a_checkpoint_of_another_class_is_named(run_folders):
    with pytest.raises(ValueError, match="expected a checkpoint of PhotonSum, got one of Teacher"):
        PhotonSum.load(run_folders["teacher"])
    with pytest.raises(ValueError, match="expected a checkpoint of ShapeModule, got one of PhotonSum"):
        ShapeModule.load(run_folders["photons"])
    assert isinstance(ShapeModule.load(run_folders["teacher"]), Teacher)


# -- modes ------------------------------------------------------------------------------------------------------------


def test_evaluating_restores_every_mode():
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    module.train()
    module[1].eval()
    module[1][0].train()
    modes = [m.training for m in module.modules()]
    with evaluating(module):
        assert not any(m.training for m in module.modules())
        assert not torch.is_grad_enabled()
        with evaluating(module):
            pass
        assert not torch.is_grad_enabled()
    assert [m.training for m in module.modules()] == modes
    assert torch.is_grad_enabled()
    with pytest.raises(KeyError), evaluating(module):
        raise KeyError
    assert [m.training for m in module.modules()] == modes
    assert torch.is_grad_enabled()


@every
def test_inference_leaves_the_module_training_and_global_random_state_alone(run_folders, showers, name):
    module = load_module(run_folders[name]).train()
    state = torch.random.get_rng_state()
    first = output(module, showers)
    assert all(m.training for m in module.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(output(module, showers), first)  # dropout would have shown
    assert not torch.equal(output(module, showers, seed=6), first)


# -- training ---------------------------------------------------------------------------------------------------------


@every
def test_two_epochs_are_one_and_a_resumed_one(root_file, tmp_path, fit, name):
    torch.manual_seed(1)
    whole = MODULES[name]()
    through = fit(whole, root_file, tmp_path / "whole", epochs=2)
    torch.manual_seed(1)
    first = MODULES[name]()
    fit(first, root_file, tmp_path / "parts", epochs=1)
    interrupted = {key: value.clone() for key, value in first.state_dict().items()}
    torch.manual_seed(4711)  # another process would start elsewhere, with other weights
    second = MODULES[name]()
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    resumed = fit(second, root_file, tmp_path / "parts", epochs=2, ckpt_path=last)
    assert resumed.global_step == through.global_step
    changed = False
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key
        changed |= not torch.equal(interrupted[key], value)
    assert changed
    assert resumed.callback_metrics["val/loss"] == through.callback_metrics["val/loss"]
    one, two = through.optimizers[0], resumed.optimizers[0]
    assert one.param_groups[0]["lr"] == two.param_groups[0]["lr"] < one.defaults["lr"]
    for a, b in zip(one.state.values(), two.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("exp_avg", "exp_avg_sq"))


def test_dropout_is_keyed_by_seed_step_batch_and_process(monkeypatch):
    module = MODULES["teacher"]()

    def numbers(step=0, batch_idx=0, rank=0):
        module._trainer = SimpleNamespace(global_step=step, global_rank=rank)
        module.on_train_batch_start(None, batch_idx)
        return torch.rand(4)

    first = numbers()
    assert torch.equal(numbers(), first)
    for others in ({"step": 1}, {"batch_idx": 1}, {"rank": 1}):  # accumulated batches share their step
        assert not torch.equal(numbers(**others), first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert not torch.equal(numbers(), first)


@every
def test_every_trainable_parameter_gets_a_gradient(root_file, tmp_path, fit, name):
    class Watched(type(MODULES[name]())):
        seen = 0

        def on_after_backward(self):
            Watched.seen += 1
            for key, p in self.named_parameters():
                if p.requires_grad:
                    assert p.grad is not None, key
                    assert torch.isfinite(p.grad).all(), key
                    Watched.nonzero = {*getattr(Watched, "nonzero", ()), *([key] if p.grad.any() else [])}

    # Wide enough that no rectified unit sleeps through four batches.
    torch.manual_seed(0)
    module = Watched(**{**MODULES[name]().init, "hidden": (64, 64)})
    fit(module, root_file, tmp_path, trainer={"limit_train_batches": 4})
    assert Watched.seen == 4
    assert Watched.nonzero == {key for key, p in module.named_parameters() if p.requires_grad}


def test_the_standardizations_are_those_of_the_training_split(root_file, run_folders):
    data = RootDataModule(str(root_file))
    rows, particles, images = fit_sample(data)
    assert rows.tolist() == data.rows("train").tolist()  # few enough to take all
    expected = ShapeLogits((44, 44))
    expected.fit(images, draws.row_keys(rows, draws.FIT_STREAM))
    teacher = load_module(run_folders["teacher"])
    assert torch.equal(teacher.logits.mean, expected.mean)
    assert torch.equal(teacher.logits.scale, expected.scale)
    encoded = teacher.context(particles, images.flatten(1).sum(1))
    torch.testing.assert_close(encoded.mean(0), torch.zeros(encoded.shape[1]), rtol=0, atol=1e-3)


def test_fit_sample_spreads_over_the_training_split(root_file, monkeypatch):
    monkeypatch.setattr("calosim.models.base.FIT_ROWS", 10)
    data = RootDataModule(str(root_file))
    rows, particles, images = fit_sample(data)
    train = data.rows("train")
    assert len(rows) == len(particles) == len(images) == 10
    assert (rows[0], rows[-1]) == (train[0], train[-1])
    assert torch.equal(particles, torch.from_numpy(data.arrays["particles"][rows.numpy()]))


# -- likelihood and generation ----------------------------------------------------------------------------------------


def test_the_likelihood_does_not_depend_on_the_standardization(showers):
    """An untrained flow is close to the identity; what is compared is the change of variables."""
    batch = {
        "particles": torch.from_numpy(showers.particles[:40]).float(),
        "images": torch.from_numpy(showers.images[:40]),
        "rows": torch.arange(40),
    }
    teacher = MODULES["teacher"]().eval()
    teacher.logits.fit(batch["images"], draws.row_keys(batch["rows"], draws.FIT_STREAM))
    teacher.features.fit(batch["particles"], batch["images"].flatten(1).sum(1))
    with torch.no_grad():
        got = teacher.log_likelihood(batch)
        logits, context = teacher.inputs(batch)
        plain = logits * teacher.logits.scale + teacher.logits.mean
        density = teacher.flow(context).log_prob((plain - teacher.logits.mean) / teacher.logits.scale)
        expected = (density - teacher.logits.scale.log().sum()) / teacher.detector.pixels
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_training_noise_changes_with_the_epoch_and_validation_noise_does_not(showers):
    batch = {
        "particles": torch.from_numpy(showers.particles[:5]).float(),
        "images": torch.from_numpy(showers.images[:5]),
        "rows": torch.arange(5),
    }
    teacher = MODULES["teacher"]()
    epochs = [teacher.inputs(batch, epoch)[0] for epoch in (-1, 0, 1)]
    for k in range(3):
        assert torch.equal(teacher.inputs(batch, k - 1)[0], epochs[k])
        assert not torch.allclose(epochs[k], epochs[k - 1])


def test_what_a_row_gets_does_not_depend_on_its_batch(run_folders, showers):
    teacher = load_module(run_folders["teacher"])
    particles = torch.from_numpy(showers.particles[:4]).float()
    total, rows = torch.from_numpy(showers.photon_sum[:4]), torch.tensor([7, 2**33, 9, 0])

    def sample(index):
        context = teacher.context(particles[index], total[index])
        base = draws.normal(draws.row_keys(rows[index], draws.BASE_STREAM, 3), 1936)
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


def test_a_run_folder_may_be_moved(run_folders, tmp_path):
    shutil.copytree(run_folders["photons"], tmp_path / "elsewhere")
    assert isinstance(load_module(tmp_path / "elsewhere"), PhotonSum)
