"""What models have learned from goes with their checkpoints, and nothing that is not finite does."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from calosim import models
from calosim.data.datamodule import RootDataModule
from calosim.data.record import Showers, check_showers
from calosim.flows import FlowConfig
from calosim.models.base import (
    PRECISIONS,
    check_precision,
    evaluating,
    fit_sample,
    joined,
    not_seen,
    same_line,
    split_unlike,
)
from calosim.models.checkpoints import lineages, load_module
from calosim.models.finetune import FineTune
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.models.teacher import Teacher
from calosim.representations import PixelConfig, SplitConfig

SEEN = {"pdg": {"22": 5}, "low": [100.0] + 8 * [0.0], "high": [200.0] + 8 * [0.0]}


def small() -> PhotonSum:
    return PhotonSum(hidden=(4,), components=2, members=2)


# -- finite numbers ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_training_by_its_row(root_file, tmp_path, fit, monkeypatch):
    module = small()
    truth = module.head.log_prob

    def wrong(outputs, energy, photon_sum):
        return torch.where(photon_sum == photon_sum.max(), torch.nan, truth(outputs, energy, photon_sum))

    monkeypatch.setattr(module.head, "log_prob", wrong)
    with pytest.raises(FloatingPointError, match=r"loss in training after 0 steps: row \d+ of the data gives nan"):
        fit(module, root_file, tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_validation_rows_that_are_not_finite_are_not_dropped(root_file, tmp_path, fit, monkeypatch):
    module = small()
    monkeypatch.setattr(PhotonSum, "loss", lambda self, batch, step=-1: torch.full((len(batch["rows"]),), torch.nan))
    with pytest.raises(FloatingPointError, match=r"loss in evaluation after \d+ steps: row \d+ of the data gives nan"):
        fit(module, root_file, tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_gradients_and_weights_that_are_not_finite_end_the_training(root_file, tmp_path, fit):
    module = small()
    weight = next(p for p in module.parameters() if p.requires_grad)
    weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    with pytest.raises(FloatingPointError, match=r"gradient of posterior\.\S+ after 0 steps: expected finite numbers"):
        fit(module, root_file, tmp_path)
    with torch.no_grad():
        weight.view(-1)[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"weights posterior\.\S+ after 0 steps"):
        module.on_save_checkpoint({"state_dict": module.state_dict()})


def test_checkpoints_with_weights_that_are_not_finite_are_refused(run_folders, tmp_path):
    checkpoint = torch.load(run_folders["photons"] / "checkpoints" / "best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = torch.nan
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt: its weights \S+ are not finite"):
        load_module(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("verb", ["predict", "validate", "test"])
def test_no_verb_uses_such_weights_or_half_precisions(verb, run_folders, root_file, tmp_path, error_of):
    checkpoint = torch.load(run_folders["photons"] / "checkpoints" / "best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = torch.nan
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    words = [verb, "-c", run_folders["photons"] / "config.yaml", "--data.files", root_file, "--quiet"]
    assert "are not finite" in error_of(*words, "--ckpt_path", tmp_path / "bad.ckpt")
    good = run_folders["photons"] / "checkpoints" / "best.ckpt"
    assert "got 16-true" in error_of(*words, "--ckpt_path", good, "--trainer.precision", "16-true")


def test_an_enormous_rate_ends_in_one_line_and_without_a_checkpoint(root_file, tmp_path, command, capfd):
    words = [
        "-c",
        "conf/photons.yaml",
        "--data.files",
        root_file,
        "--model.hidden",
        "[8]",
        "--data.batch_size",
        64,
        "--quiet",
    ]
    assert (
        command("fit", *words, "--model.optimizer.lr", "1e30", "--trainer.max_epochs", 2, "--run", tmp_path / "r") == 1
    )
    assert capfd.readouterr().err.count("calosim: error: ") == 1
    assert not list(tmp_path.rglob("*.ckpt"))


def test_inputs_are_checked_in_the_precision_they_are_used_in(showers):
    particles = showers.particles.copy()
    particles[7, 1] = 1e39
    with pytest.raises(ValueError, match=r"x: row 7: vx is 1e\+39; expected a finite number of 32 bits"):
        check_showers(Showers(particles, showers.pdg, showers.images, "zn"), "x", lambda row: f"row {row}")


def test_precisions_that_are_right(root_file, tmp_path, fit):
    for precision in ("16-true", "bf16-true", "16-mixed", "bf16-mixed"):
        with pytest.raises(ValueError, match=f"expected trainer.precision 32-true or 64-true, got {precision}"):
            check_precision(precision)
    losses = []
    for precision in PRECISIONS:
        torch.manual_seed(0)
        module = Teacher(representation=SplitConfig(hidden=16, event=8, local_hidden=8))  # without weight noise
        trainer = fit(module, root_file, tmp_path / precision, trainer={"precision": precision})
        losses.append(float(trainer.callback_metrics["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    with pytest.raises(ValueError, match="got bf16-mixed"):
        fit(small(), root_file, tmp_path / "half", trainer={"precision": "bf16-mixed"})


# -- what was seen ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_tells_what_its_model_has_seen(run_folders, showers):
    module = Teacher.load(run_folders["splits"])
    (entry,) = module.lineage
    assert (entry["split_by"], entry["seed"], entry["particle"]) == ("primary", 0, None)
    assert set(module.seen["pdg"]) == {str(code) for code in np.unique(showers.pdg)}
    assert (np.array(module.seen["low"]) >= showers.particles.min(0)).all()
    assert lineages(run_folders["splits"]) == module.lineage


def test_a_fine_tuned_model_has_seen_what_its_baseline_saw(run_folders, root_file, tmp_path, fit):
    module = FineTune(run_folders["splits"])
    few = {"limit_train_batches": 1, "limit_val_batches": 1}
    fit(module, root_file, tmp_path, seed=3, particle="lambda", trainer=few)
    line = lineages(tmp_path / "checkpoints" / "last.ckpt")
    assert [(e["seed"], e["particle"]) for e in line] == [(0, None), (3, 3122)]
    assert "seed 0, not 3" in split_unlike(line)
    assert "22" in Teacher.load(tmp_path).seen["pdg"]
    # What is resumed goes on with the same rows.
    again = FineTune(run_folders["splits"])
    with pytest.raises(ValueError, match="trained on other rows: it has seed 3, not 4"):
        fit(again, root_file, tmp_path / "a", 2, tmp_path / "checkpoints" / "last.ckpt", seed=4, particle="lambda")
    other = run_folders["photons"] / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="of another model: it has components 2, not 3"):
        fit(PhotonSum(hidden=(8,), components=3, bins=32, members=3), root_file, tmp_path / "b", 2, other)


def test_lines():
    a, b = {"data_hash": "x", "seed": 1}, {"data_hash": "x", "seed": 2}
    assert joined([a], [b, a]) == [a, b]
    assert same_line([a], [a]) == split_unlike([a]) == ""
    assert same_line([a], [b]) == "seed 2, not 1"
    assert same_line([a], [a, b]).startswith("2 data sets")


def test_what_was_not_seen_is_counted():
    particles = np.zeros((4, 9))
    particles[:, 0] = [150, 205, 400, 150]
    found = not_seen(SEEN, particles, np.array([22, 22, 22, 2112]))
    assert {reason: rows.tolist() for reason, rows in found.items()} == {
        "neutron never seen": [False, False, False, True],
        "energy beyond [100, 200]": [False, False, True, False],
    }
    particles[:, 0] = [150, 89, 1e-9, 100]
    assert not_seen(SEEN, particles, np.full(4, 22))["energy beyond [100, 200]"].tolist() == [False, True, True, False]
    assert not_seen(None, particles, np.array([22, 22, 22, 2112])) == {}


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


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("PhotonSum", {"components": 0}),
        ("PhotonSum", {"hidden": (8, 0)}),
        ("Acceptance", {"hidden": (-1,)}),
        ("VAE", {"latent": 0}),
        ("GAN", {"width": 0}),
        ("FlowMatching", {"steps": 0}),
    ],
)
def test_networks_of_nothing_are_refused(name, settings):
    (key,) = settings
    with pytest.raises(ValueError, match=f"expected {key} of at least 1, got"):
        getattr(models, name)(**settings)
