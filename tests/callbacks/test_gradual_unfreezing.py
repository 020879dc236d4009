"""Gradual unfreezing: what is frozen does not move by a bit, resumed runs and processes agree, schedules stay their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from callbacks import GradualUnfreezing
from calosim.data.datamodule import RootDataModule
from calosim.data.root import write
from calosim.flows import FlowConfig, units
from calosim.models.photon_sum import PhotonSum
from calosim.models.teacher import Teacher
from calosim.representations import PixelConfig

TRANSFORMS = 3
OPTIMIZERS = {
    "adam": lambda p: Adam(p, lr=1e-3, fused=True),
    "adamw": lambda p: AdamW(p, lr=1e-3, weight_decay=0.1),
    "sgd": lambda p: SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
}


class Diary(Callback):
    """Copies weights, optimizer state and learning rates at the end of every epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.states: list[dict[str, dict[str, torch.Tensor]]] = []
        self.rates: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        optimizer = trainer.optimizers[0]
        named = dict(pl_module.named_parameters())
        # Every parameter is the optimizer's, whatever is frozen.
        assert {id(p) for g in optimizer.param_groups for p in g["params"]} == set(map(id, named.values()))
        self.weights.append({n: p.detach().clone() for n, p in named.items()})
        self.states.append({n: dict(optimizer.state[p]) for n, p in named.items() if optimizer.state.get(p)})
        self.rates.append(optimizer.param_groups[0]["lr"])


class AllGradients(GradualUnfreezing):
    """As on several processes: gradients of frozen parameters are computed."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        pl_module.requires_grad_(True)


class Kill(Callback):
    """Writes checkpoints when ModelCheckpoint does, and ends the run as an interruption does after so many steps."""

    def __init__(self, step: int, path: Path, now: bool = False) -> None:
        self.step, self.path, self.now = step, path, now

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            if self.now:
                trainer.save_checkpoint(self.path)
            raise RuntimeError("killed")


def teacher(optimizer: str = "adam", **settings: Any) -> Teacher:
    torch.manual_seed(0)
    flow = FlowConfig(**{"transforms": TRANSFORMS, "hidden": (15, 15), "bins": 2, "dropout": 0.3, **settings})
    return Teacher("focal_h", flow, PixelConfig(), optimizer=OPTIMIZERS[optimizer])


@pytest.fixture(scope="module")
def root_file(make_showers, tmp_path_factory) -> Path:
    """The smallest detector."""
    path = tmp_path_factory.mktemp("data") / "focal_h.root"
    showers = make_showers("focal_h", responses=4)
    write(path, showers)
    return path


def fit(
    module: Any,
    file: Path,
    folder: Path,
    *callbacks: Callback,
    epochs: int = 3,
    resume: Path | None = None,
    **more: Any,
) -> None:
    Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        limit_train_batches=3,
        limit_val_batches=1,
        **more,
    ).fit(module, RootDataModule(str(file), "focal_h", batch_size=16), ckpt_path=resume)


def names_of(module: Teacher, order: str) -> list[set[str]]:
    """Names of each transformation's parameters in the order in which they thaw."""
    return [
        {f"flow.{name}.{n}" for n, _ in spline.named_parameters()}
        for name, spline in units(module.flow, "gauss" if order == "GD" else "data")
    ]


# -- what is frozen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [GradualUnfreezing, AllGradients])
@pytest.mark.parametrize(
    ("order", "optimizer", "accumulate"), [("GD", "adam", 1), ("DG", "adamw", 1), ("GD", "sgd", 2), ("DG", "adam", 2)]
)
def test_frozen_means_not_a_bit(kind, order, optimizer, accumulate, root_file, tmp_path):
    module, diary = teacher(optimizer), Diary()
    extra = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}
    fit(module, root_file, tmp_path, kind(order), diary, **extra)
    groups = names_of(module, order)
    assert set.union(*groups) == set(diary.weights[0])
    for epoch in range(3):
        before, after, state = diary.weights[epoch], diary.weights[epoch + 1], diary.states[epoch]
        thawed = set.union(*groups[: epoch + 1])
        assert set(state) == thawed
        for name in before:
            # Biases of dead units may stay; weights with decay or momentum do not.
            if name not in thawed:
                assert torch.equal(before[name], after[name])
        for group in groups[: epoch + 1]:
            assert any(not torch.equal(before[n], after[n]) for n in group)
    assert all(p.requires_grad for p in module.parameters())


def test_skipped_gradients_change_nothing(root_file, tmp_path):
    modules = [teacher(), teacher()]
    for module, kind in zip(modules, (GradualUnfreezing, AllGradients), strict=True):
        fit(module, root_file, tmp_path / kind.__name__, kind("DG"), gradient_clip_val=0.1)
    for a, b in zip(*(m.parameters() for m in modules), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [GradualUnfreezing, AllGradients])
def test_clipping_counts_the_thawed_only(kind, root_file, tmp_path, monkeypatch):
    seen = []

    def configure(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        seen.append({n for n, p in self.named_parameters() if p.grad is not None})
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        total = torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()
        assert total == pytest.approx(1e-3, rel=1e-3)

    monkeypatch.setattr(Teacher, "configure_gradient_clipping", configure)
    module = teacher()
    fit(module, root_file, tmp_path, kind("GD", stages=[1, 1]), epochs=2, gradient_clip_val=1e-3)
    groups = names_of(module, "GD")
    half = len(seen) // 2
    assert all(names == groups[0] for names in seen[:half])
    assert all(names == groups[0] | groups[1] for names in seen[half:])


@pytest.mark.parametrize("context", ["unit", "all", "none"])
def test_layers_that_see_the_context(context, root_file, tmp_path):
    module, diary = teacher(), Diary()
    fit(module, root_file, tmp_path, GradualUnfreezing("GD", stages=[1, 1], context=context), diary, epochs=2)
    moved = [
        {n for n in a if not torch.equal(a[n], b[n])} for a, b in zip(diary.weights, diary.weights[1:], strict=False)
    ]
    groups = names_of(module, "GD")
    first = [{n for n in g if "conditioner.layers.0." in n} for g in groups]
    assert all(first)
    for epoch in range(2):
        for k, (group, layer) in enumerate(zip(groups, first, strict=True)):
            assert bool(moved[epoch] & (group - layer)) == (k <= epoch)
            expected = {"unit": k <= epoch, "all": True, "none": False}[context]
            assert bool(moved[epoch] & layer) == expected


# -- resuming -------------------------------------------------------------------------------------------------------


def scheduled_run(file: Path, folder: Path, average: bool, *more: Callback, resume: Path | None = None) -> Any:
    """A run with everything that has a state; weights, optimizer states and learning rates at its end."""
    module, diary = teacher("adamw"), Diary()
    module.scheduler = lambda o: CosineAnnealingLR(o, T_max=3)
    averages = [EMAWeightAveraging(decay=0.5)] if average else []
    fit(module, file, folder, GradualUnfreezing("GD", lr_factors=0.5), diary, *averages, *more, resume=resume)
    return dict(module.named_parameters()), diary.states[-1], diary.rates[-1]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "averaged"])
def uninterrupted(request, root_file, tmp_path_factory):
    return request.param, scheduled_run(root_file, tmp_path_factory.mktemp("whole"), request.param)


@pytest.mark.parametrize("step", [4, 8], ids=["in stage 1", "in stage 2"])
def test_a_killed_run_resumes_where_it_was(step, uninterrupted, root_file, tmp_path):
    average, (weights, states, rate) = uninterrupted
    checkpoint = tmp_path / "killed.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        scheduled_run(root_file, tmp_path, average, Kill(step, checkpoint))
    again, states_again, rate_again = scheduled_run(root_file, tmp_path, average, resume=checkpoint)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert set(states) == set(states_again) == set(weights)
    assert all(torch.equal(v, states_again[n][key]) for n, state in states.items() for key, v in state.items())
    assert rate == rate_again


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_the_stage_is_right_inside_of_an_epoch(root_file, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        fit(teacher(), root_file, tmp_path, GradualUnfreezing(stages=[1, 9]), Kill(4, tmp_path / "now.ckpt", now=True))
    module, diary = teacher(), Diary()
    fit(module, root_file, tmp_path, GradualUnfreezing(stages=[1, 9]), diary, resume=tmp_path / "now.ckpt")
    groups = names_of(module, "GD")
    assert set(diary.states[0]) == groups[0] | groups[1]
    for group, moves in zip(groups, (True, True, False), strict=True):
        assert any(not torch.equal(diary.weights[0][n], diary.weights[1][n]) for n in group) == moves


def test_stages_begin_inside_of_an_epoch_where_there_are_fewer_epochs(root_file, tmp_path):
    class Thawed(Callback):
        found: list[int]

        def on_train_start(self, trainer, pl_module):
            self.found, self.groups = [], names_of(pl_module, "GD")

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trained = {name for name, p in pl_module.named_parameters() if p.requires_grad}
            self.found.append(sum(group <= trained for group in self.groups) - 1)
            self.batches = trainer.num_training_batches

    thawed = Thawed()
    fit(teacher(), root_file, tmp_path, GradualUnfreezing("GD"), thawed, epochs=1)
    assert thawed.batches >= TRANSFORMS
    assert thawed.found == [batch * TRANSFORMS // thawed.batches for batch in range(thawed.batches)]


def test_resuming_with_other_settings_is_refused(root_file, tmp_path):
    last = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        fit(teacher(), root_file, tmp_path, GradualUnfreezing("GD"), Kill(7, last))
    with pytest.raises(ValueError, match=r"side gauss, got data"):
        fit(teacher(), root_file, tmp_path, GradualUnfreezing("DG"), resume=last)
    with pytest.raises(ValueError, match=r"starts \[0, 1, 2\], got \[0, 2, 4\]"):
        fit(teacher(), root_file, tmp_path, GradualUnfreezing("GD"), resume=last, epochs=6)
    # Naming the stages lets a run go on for longer.
    diary = Diary()
    fit(teacher(), root_file, tmp_path, GradualUnfreezing("ND", stages=[1, 1, 1]), diary, resume=last, epochs=4)
    assert diary.weights


def test_an_interruption_leaves_nothing_behind(root_file, tmp_path):
    module = teacher("sgd")
    optimizers = []
    module.optimizer = lambda p: optimizers.append(SGD(p, lr=0.25)) or optimizers[-1]
    with pytest.raises(RuntimeError, match="killed"):
        fit(module, root_file, tmp_path, GradualUnfreezing(lr_factors=0.5), Kill(4, tmp_path / "killed.ckpt"))
    assert all(p.requires_grad for p in module.parameters())
    assert optimizers[0].param_groups[0]["lr"] == 0.25
    assert not optimizers[0]._optimizer_step_pre_hooks
    assert not optimizers[0]._optimizer_step_post_hooks


# -- learning rates and averages ------------------------------------------------------------------------------------


def test_recursive_schedulers_see_their_own_rates(root_file, tmp_path):
    diaries = [Diary(), Diary()]
    for diary, more in zip(diaries, ([], [GradualUnfreezing(lr_factors=[0.5, 0.1, 3.0])]), strict=True):
        module = teacher()
        module.scheduler = lambda o: CosineAnnealingLR(o, T_max=4)
        fit(module, root_file, tmp_path / str(len(more)), diary, *more)
    assert diaries[0].rates == diaries[1].rates
    assert len(set(diaries[0].rates)) == 3


@pytest.mark.parametrize("factors", [[1.0, 0.25], 0.25])
def test_the_factor_scales_the_step(factors, root_file, tmp_path):
    """For plain SGD a step is linear in the rate: a factor in the second stage scales its first step, not the first stage."""
    steps = []
    for given in ([1.0, 1.0], factors):
        module, weights = teacher(), []
        module.optimizer = lambda p: SGD(p, lr=1e-2)

        class Steps(Callback):
            def on_train_batch_end(self, trainer, pl_module, *args, weights=weights):
                weights.append(torch.nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone())

        unfreezing = GradualUnfreezing(stages=[1, 1], lr_factors=given)
        fit(module, root_file, tmp_path / str(len(steps)), unfreezing, Steps(), epochs=2)
        steps.append(weights)
    plain, scaled = steps
    assert torch.equal(plain[2], scaled[2])
    expected = plain[2] + 0.25 * (plain[3] - plain[2])
    torch.testing.assert_close(scaled[3], expected, rtol=0, atol=1e-7)
    assert not torch.equal(plain[3], plain[2])


def test_averages_are_those_of_the_weights(root_file, tmp_path):
    module = teacher("sgd")
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    history = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            history.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    fit(module, root_file, tmp_path, GradualUnfreezing("GD", stages=[1, 9]), EMAWeightAveraging(decay=0.5), Steps())
    for name, parameter in module.named_parameters():
        average = history[0][name]
        for weights in history[1:]:
            average = 0.5 * average + 0.5 * weights[name]
        torch.testing.assert_close(parameter.detach(), average)
    for name in names_of(module, "GD")[2]:  # never thaws
        assert torch.equal(history[-1][name], start[name])


# -- stages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "stages", "starts"),
    [
        (1, "equal", [0, 1 / 3, 2 / 3]),
        (3, "equal", [0, 1, 2]),
        (8, "equal", [0, 3, 6]),
        (10, "equal", [0, 4, 7]),
        (10, [5], [0]),
        (10, [1, 100], [0, 1]),
        (-1, [2, 3, 1], [0, 2, 5]),
    ],
)
def test_stages_of_the_epochs(epochs, stages, starts):
    unfreezing = GradualUnfreezing(stages=stages)
    unfreezing.starts = unfreezing._divide(TRANSFORMS, epochs)
    assert unfreezing.starts == starts
    expected = [sum(start <= epoch for start in starts) - 1 for epoch in range(20)]
    assert [unfreezing.stage(epoch) for epoch in range(20)] == expected


@pytest.mark.parametrize(
    ("settings", "epochs", "said"),
    [
        ({}, -1, "an unknown number"),
        ({"stages": [1, 1, 1, 1]}, 9, "up to 3 stages"),
        ({"stages": [2, 2, 2]}, 4, "begins after 4 epochs"),
        ({"lr_factors": [1.0, 0.5]}, 9, "expected 3 learning-rate factors"),
    ],
)
def test_stages_that_do_not_fit(settings, epochs, said):
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=epochs, enable_checkpointing=False)
    with pytest.raises(ValueError, match=said):
        GradualUnfreezing(**settings).setup(trainer, teacher(), "fit")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"order": "up"}, "order 'up'"),
        ({"context": "some"}, "context 'some'"),
        ({"stages": "fast"}, "'fast'"),
        ({"stages": []}, r"got \[\]"),
        ({"stages": [2, 0]}, r"at least 1, got \[2, 0\]"),
        ({"lr_factors": 0.0}, "positive"),
        ({"lr_factors": [1.0, -1.0]}, "positive"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        GradualUnfreezing(**settings)


def test_a_module_without_stages():
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=1, enable_checkpointing=False)
    with pytest.raises(ValueError, match="PhotonSum has no stages"):
        GradualUnfreezing().setup(trainer, PhotonSum("zn", hidden=(8,)), "fit")


# -- processes ------------------------------------------------------------------------------------------------------

#: Two processes: weights must be equal on both after every stage, and those of one process on the same global batches.
SCRIPT = """
import sys, torch
from lightning import Callback, Trainer
from calosim.flows import FlowConfig
from calosim.models.teacher import Teacher
from calosim.data.datamodule import RootDataModule
from callbacks import GradualUnfreezing

file, out, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Compare(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        mine = torch.nn.utils.parameters_to_vector(pl_module.parameters()).detach()
        other = trainer.strategy.broadcast(mine.clone())
        assert torch.equal(mine, other), f"ranks differ after epoch {trainer.current_epoch}"
        if trainer.is_global_zero:
            weights.append(mine.clone())

weights = []
torch.manual_seed(0)
optimizer = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1)
flow = FlowConfig(transforms=3, hidden=(15, 15), bins=2, dropout=0.0)
module = Teacher("focal_h", flow, PixelConfig(), optimizer=optimizer)
trainer = Trainer(
    accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", max_epochs=3, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=0.5,
    callbacks=[GradualUnfreezing("DG"), Compare()],
)
trainer.fit(module, RootDataModule(file, "focal_h", batch_size=48 // processes))
if trainer.is_global_zero:
    torch.save(weights, out)
"""


@pytest.mark.slow
def test_two_processes_stay_one(root_file, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    weights = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        command = [sys.executable, str(script), str(root_file), str(out), str(processes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        weights.append(torch.load(out, weights_only=True))
    groups = names_of(teacher(), "DG")
    sizes = [sum(p.numel() for n, p in teacher().named_parameters() if n in group) for group in groups]
    one, two = weights
    assert len(one) == len(two) == 3
    for epoch, (a, b) in enumerate(zip(one, two, strict=True)):
        # From the data side parameters lie in the order in which they thaw: the rest is frozen to the bit on both.
        frozen = sum(sizes[epoch + 1 :])
        assert torch.equal(a[len(a) - frozen :], b[len(b) - frozen :])
        # Adam's first steps divide by small numbers: what rounding does to a gradient, it does to a whole step.
        assert (a - b).abs().mean() < 1e-5
