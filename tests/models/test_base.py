"""Modes that are restored, training that survives being killed, draws that are keyed."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from calosim.data.datamodule import RootDataModule
from calosim.flows import FlowConfig
from calosim.models.base import evaluating, fit_sample
from calosim.models.checkpoints import load_module
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.models.teacher import Teacher
from calosim.representations import PixelConfig

#: Logits of one row in batches of different size: float32 matrix products sum in another order.
REORDERED = 1e-3

TINY = FlowConfig(transforms=1, hidden=(8, 8), bins=4, dropout=0.2)
halving = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
MODULES = {
    "teacher": lambda: Teacher(flow=TINY, representation=PixelConfig(), scheduler=halving),
    "photons": lambda: PhotonSum(hidden=(8, 8), components=3, posterior="bayesian", members=2, scheduler=halving),
}
#: As many batches of an epoch as it takes to tell one from the next.
FEW = {"limit_train_batches": 3, "limit_val_batches": 1}
every = pytest.mark.parametrize("name", MODULES)


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
def test_inference_leaves_the_module_training_and_global_random_state_alone(run_folders, output, name):
    module = load_module(run_folders[name]).train()
    state = torch.random.get_rng_state()
    first = output(module)
    assert all(m.training for m in module.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(output(module), first)  # dropout would have shown
    assert not torch.equal(output(module, seed=6), first)


# -- training ---------------------------------------------------------------------------------------------------------


@every
def test_two_epochs_are_one_and_a_resumed_one(root_file, tmp_path, fit, name):
    torch.manual_seed(1)
    whole = MODULES[name]()
    through = fit(whole, root_file, tmp_path / "whole", epochs=2, trainer=FEW)
    torch.manual_seed(1)
    first = MODULES[name]()
    fit(first, root_file, tmp_path / "parts", epochs=1, trainer=FEW)
    interrupted = {key: value.clone() for key, value in first.state_dict().items()}
    torch.manual_seed(4711)  # another process would start elsewhere, with other weights
    second = MODULES[name]()
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    resumed = fit(second, root_file, tmp_path / "parts", epochs=2, ckpt_path=last, trainer=FEW)
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
    wide = {"flow": replace(TINY, hidden=(64, 64))} if name == "teacher" else {"hidden": (64, 64)}
    module = Watched(**{**MODULES[name]().init, **wide})
    fit(module, root_file, tmp_path, trainer={"limit_train_batches": 4})
    assert Watched.seen == 4
    assert Watched.nonzero == {key for key, p in module.named_parameters() if p.requires_grad}


def test_fit_sample_spreads_over_the_training_split(root_file, monkeypatch):
    monkeypatch.setattr("calosim.models.base.FIT_ROWS", 10)
    data = RootDataModule(str(root_file))
    rows, particles, images = fit_sample(data)
    train = data.rows("train")
    assert len(rows) == len(particles) == len(images) == 10
    assert (rows[0], rows[-1]) == (train[0], train[-1])
    assert torch.equal(particles, torch.from_numpy(data.arrays["particles"][rows.numpy()]))


@pytest.mark.parametrize(("name", "given", "expected"), [("splits", None, 1), ("teacher", None, 2), ("splits", "2", 2)])
def test_small_products_are_not_shared_by_threads(name, given, expected, run_folders, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    module, threads = ShowerModel.load(run_folders[name]), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        module.on_fit_start()
        assert torch.get_num_threads() == expected
        module.on_fit_end()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
