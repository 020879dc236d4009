"""The student: pairing with its teacher, what each loss sees, checkpoints without the teacher, and two processes as one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from calosim import rng
from calosim.data.datamodule import RootDataModule
from calosim.flows import FlowChanges, FlowConfig, Permutation, trace, units
from calosim.models.base import step_keys
from calosim.models.losses import ChannelLoss, LossWeights, StudentLosses, distillation
from calosim.models.shower import ShowerModel
from calosim.models.student import Student
from calosim.models.teacher import Teacher
from calosim.representations import PixelConfig, SplitConfig
from calosim.simulation.simulator import FastSimulator

OUTPUTS = LossWeights(outputs=1.0, intermediate=0.0, parameters=0.0)
OUTPUTS_ALONE = StudentLosses(x=OUTPUTS, z=OUTPUTS)
#: Squared distances of what is equal up to rounding, in float64; and of gradients of such.
ZERO, ZERO_GRADIENT = 1e-20, 1e-8
#: One process against two: float32 sums in another order, through an epoch of Adam.
PROCESSES = 1e-4


@pytest.fixture(scope="module")
def datamodule(root_file):
    datamodule = RootDataModule(str(root_file), batch_size=6)
    datamodule.setup()
    return datamodule


@pytest.fixture(scope="module")
def batch(datamodule):
    return next(iter(datamodule.train_dataloader()))


@pytest.fixture(scope="module")
def teacher_file(datamodule, tmp_path_factory):
    """Makes a teacher's checkpoint whose conditioners read the context only: ``teacher_file(transforms=2, ...)``.

    Its autoregressive maps are maps of single features, so that a student with the same weights is the same function.
    """

    @lru_cache
    def make(analytic=True, **arguments):
        torch.manual_seed(1)
        teacher = Teacher(
            "zn",
            FlowConfig(**{"transforms": 2, "hidden": (8, 8), "bins": 3, "dropout": 0.5, **arguments}),
            PixelConfig(),
        )
        showers = datamodule.showers("train")
        teacher.features.fit(torch.from_numpy(showers.particles), torch.from_numpy(showers.photon_sum))
        teacher.representation.fit(torch.from_numpy(showers.images[:50]), torch.arange(50))
        with torch.no_grad():
            for _, spline in units(teacher.flow):
                made = spline.conditioner
                for p in made.output.parameters():
                    p.mul_(20)  # far from the identity
                if analytic:
                    for weight in made.layers[0].weights:
                        weight[made.context :] = 0
                    for prefix, weight in zip(made.output.prefix, made.output.weights, strict=True):
                        weight[prefix:] = 0
        checkpoint = {"state_dict": teacher.state_dict()}
        teacher.on_save_checkpoint(checkpoint)
        path = tmp_path_factory.mktemp("teachers") / "teacher.ckpt"
        torch.save(checkpoint, path)
        return str(path)

    return make


# -- the same function ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("permutation", get_args(Permutation))
@pytest.mark.parametrize("transforms", [1, 2, 3, 4])
def test_a_student_that_is_the_teacher_has_neither_loss_nor_gradient(transforms, permutation, teacher_file, batch):
    path = teacher_file(transforms=transforms, permutation=permutation)
    batch = {name: values[:2] for name, values in batch.items()}
    student = Student(init_from=path, start="teacher", losses=StudentLosses(channel=ChannelLoss(1.0))).double()
    parts = student.parts(batch, step=3)
    assert set(parts) == {"loss", *student.losses.weights(), "kl"} - (
        {"x_intermediate", "z_intermediate"} if transforms == 1 else set()
    )
    assert all(bool((p < (1e-12 if n in ("loss", "kl", "channel") else ZERO)).all()) for n, p in parts.items()), parts
    student.objective(parts).mean().backward()
    assert max(float(p.grad.abs().max()) for p in student.parameters()) < ZERO_GRADIENT


def test_pairing_tells_transformations_apart(teacher_file, batch):
    student = Student(init_from=teacher_file(transforms=3), start="teacher").double()
    images, context, keys = student.inputs(batch)
    x, _ = student.representation.encode(images, keys)
    taught = trace(student.teacher.flow, x, context)
    made = trace(student.flow, taught.states[-1], context)
    assert distillation(taught.parameters, made.parameters).max() < ZERO
    assert distillation(taught.parameters, made.parameters[::-1]).min() > 1e-2
    assert distillation(taught.states[1:-1], made.states[1:-1][::-1]).min() > 1e-3


def test_losses_are_their_equations(teacher_file, batch):
    """Every part once more from the flows' own transforms, without traces."""
    student = (
        Student(init_from=teacher_file(analytic=False), losses=StudentLosses(channel=ChannelLoss(1.0), center=1.0))
        .double()
        .eval()
    )
    parts = student.parts(batch, step=5)
    images, context, keys = student.inputs(batch, step=5)
    x, _ = student.representation.encode(images, keys)
    ours, theirs = student.flow(context).transform, student.teacher.flow(context).transform
    made = ours.inv(theirs(x))
    torch.testing.assert_close(parts["x_outputs"], (made - x).square().mean(1))
    z = rng.normal(step_keys(batch["rows"], rng.TRAINING_STREAM, 5), student.detector.pixels).double()
    sample = ours.inv(z)
    torch.testing.assert_close(parts["z_outputs"], (theirs(sample) - z).square().mean(1))
    kl = (
        student.flow(context).log_prob(sample) - student.teacher.flow(context).log_prob(sample)
    ) / student.detector.pixels
    torch.testing.assert_close(parts["kl"], kl)
    photon_sum = batch["images"].flatten(1).sum(1)
    images = student.representation.shapes(made) * (photon_sum + student.representation.expected_noise)[:, None]
    noisy = student.representation.shapes(x) * (photon_sum + student.representation.expected_noise)[:, None]
    difference = student.detector.channels((images - noisy).view(-1, *student.detector.shape))
    torch.testing.assert_close(parts["channel"], difference.square().mean(1) / photon_sum)
    # Without the expected noise, the data's own images have the Monte Carlo's light in every channel, but for noise.
    light = student.detector.channels(noisy.view(-1, *student.detector.shape) - student.representation.noise / 2)
    error = light - student.detector.channels(batch["images"])
    assert error.abs().max() < 0.02 * light.max()
    assert error.mean().abs() < 2


def test_noise_is_fixed_in_validation_and_new_in_every_step(teacher_file, batch):
    student = Student(init_from=teacher_file())
    with torch.no_grad():
        fixed, again, first, second = (student.parts(batch, step)["z_outputs"] for step in (-1, -1, 0, 1))
        half = student.parts({k: v[3:] for k, v in batch.items()})["z_outputs"]
    assert torch.equal(fixed, again)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, fixed)
    torch.testing.assert_close(half, fixed[3:])


def test_training_on_an_analytic_teacher_approaches_it(teacher_file, batch):
    torch.manual_seed(0)
    student = Student(init_from=teacher_file(transforms=1))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    with torch.no_grad():
        before = student.parts(batch)
    for step in range(50):
        optimizer.zero_grad()
        student.objective(student.parts(batch, step)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = student.parts(batch)
    for name in ("x_outputs", "z_outputs", "kl"):
        assert after[name].mean() < 0.75 * before[name].mean(), name


# -- weights --------------------------------------------------------------------------------------------------------------


def test_rows_are_weighted_in_the_losses_meant(teacher_file, batch):
    student = Student(init_from=teacher_file(), losses=replace(OUTPUTS_ALONE, channel=ChannelLoss(0.5)))
    with torch.no_grad():
        parts = student.parts(batch)
    plain = student.objective(parts)
    distilled = parts["x_outputs"] + parts["z_outputs"]
    torch.testing.assert_close(plain, distilled + 0.5 * parts["channel"])
    weight = torch.arange(6.0)
    torch.testing.assert_close(student.objective(parts, {"loss_weight": weight}), plain * weight)
    physics = student.objective(parts, {"physics_weight": weight})
    torch.testing.assert_close(physics, distilled + 0.5 * weight * parts["channel"])
    assert student.row_weights == ("loss_weight", "physics_weight")
    assert Student(init_from=teacher_file()).row_weights == ("loss_weight",)


def test_the_channel_loss_is_ramped_up_in_training_only(teacher_file):
    student = Student(init_from=teacher_file(), losses=StudentLosses(channel=ChannelLoss(2.0, warmup_steps=3)))
    assert [student.losses.weights(step)["channel"] for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert student.losses.weights()["channel"] == 2.0


def test_what_is_switched_off_is_not_computed(teacher_file, batch):
    off = LossWeights(0.0, 0.0, 0.0)
    assert set(Student(init_from=teacher_file(), losses=StudentLosses(z=off)).parts(batch)) == {
        "loss",
        "x_outputs",
        "x_intermediate",
        "x_parameters",
    }
    assert set(Student(init_from=teacher_file(), losses=StudentLosses(x=off, z=OUTPUTS)).parts(batch)) == {
        "loss",
        "z_outputs",
        "kl",
    }
    with pytest.raises(ValueError, match="at least one loss"):
        Student(init_from=teacher_file(), losses=StudentLosses(x=off, z=off))
    with pytest.raises(ValueError, match="at least 0 for outputs"):
        LossWeights(-1.0, 0.0, 0.0)


@pytest.mark.parametrize("bins", [0, 2])
def test_students_of_another_size_learn_from_outputs(bins, teacher_file, batch):
    size = FlowChanges(transforms=1, hidden=(8,), bins=bins)
    student = Student(init_from=teacher_file(analytic=False), flow=size, losses=OUTPUTS_ALONE)
    student.objective(student.parts(batch)).mean().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in student.teacher.parameters())


@pytest.mark.parametrize("hidden", [(8, 8), (7, 7)])
def test_a_student_starts_from_another_pruned_if_that_is_wider(hidden, run_folders, datamodule, tmp_path):
    torch.manual_seed(0)
    source = Student(init_from=str(run_folders["teacher"]))
    assert source.init["flow"]["hidden"] == [8, 8]
    with torch.no_grad():
        for p in source.parameters():
            p.mul_(2)
    checkpoint: dict = {"state_dict": source.state_dict()}
    source.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "wide.ckpt")
    torch.manual_seed(1)
    narrow = Student(
        init_from=str(run_folders["teacher"]),
        flow=FlowChanges(hidden=hidden),
        start=str(tmp_path / "wide.ckpt"),
        losses=OUTPUTS_ALONE,
    )
    showers = datamodule.showers("val")
    keys = [torch.from_numpy(a) for a in (showers.particles, showers.photon_sum)]
    rows = torch.arange(len(showers))
    wanted, before = (m.generate_points(*keys, 0, rows) for m in (source, narrow))
    narrow.trainer = SimpleNamespace(datamodule=datamodule, precision="32-true")
    narrow.setup("fit")
    error, far = ((x - wanted).square().mean().sqrt() for x in (narrow.generate_points(*keys, 0, rows), before))
    assert error < 1e-6 if hidden == (8, 8) else error < far / 2


# -- what does not fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"flow": FlowChanges(transforms=3)}, "3 transforms for the teacher's 2; set --model.losses.x.intermediate 0"),
        ({"flow": FlowChanges(transforms=3), "losses": StudentLosses(x=OUTPUTS)}, "--model.losses.z.intermediate 0"),
        (
            {"flow": FlowChanges(bins=4)},
            "4 bins in 8 chunks for the teacher's 3 in 8; set --model.losses.x.parameters 0",
        ),
        ({"flow": FlowChanges(permutation="random")}, "other pixel orders"),
        ({"flow": FlowChanges(hidden=(8,)), "start": "teacher"}, "--model.start random"),
        ({"flow": FlowChanges(transforms=1), "start": "teacher", "losses": OUTPUTS_ALONE}, "--model.start random"),
        ({"start": "techer"}, "unknown start 'techer'; expected random, teacher, or a student's run folder"),
        (
            {"representation": PixelConfig(noise=0.4)},
            "preprocessing, representation .*'noise': 0.5.*, got .*'noise': 0.4",
        ),
        ({"physics": False}, "preprocessing, physics True, got False"),
        ({"detector": "zp"}, "expected a teacher of ZP, got one of ZN"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(arguments, said, teacher_file):
    path = teacher_file()
    with pytest.raises(ValueError, match=said):
        Student(**{"init_from": path, **arguments})


def test_a_student_needs_a_teacher_to_train(root_file, tmp_path, fit):
    with pytest.raises(ValueError, match=r"--model\.init_from"):
        fit(Student("zn"), root_file, tmp_path)


# -- splits ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counting(batch, tmp_path):
    """A teacher of splits whose network reads the context only, and its student with the same weights."""
    torch.manual_seed(2)
    teacher = Teacher(representation=SplitConfig(hidden=16, event=8, local_hidden=8))
    teacher.features.fit(batch["particles"], batch["images"].flatten(1).sum(1))
    with torch.no_grad():
        for parameter in teacher.flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        teacher.flow.first.weight.zero_()
        teacher.flow.skip.weight.zero_()
    checkpoint = {"state_dict": teacher.state_dict()}
    teacher.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "teacher.ckpt")
    losses = StudentLosses(channel=ChannelLoss(1.0), center=1.0)
    student = Student(init_from=str(tmp_path / "teacher.ckpt"), start="teacher", losses=losses)
    with torch.no_grad():
        student.flow.first.weight.zero_()
        student.flow.first.bias.copy_(teacher.flow.first.bias)
    return student.double()


def test_a_student_of_splits_that_is_the_teacher_has_no_loss(counting, batch):
    parts = counting.parts(batch, step=3)
    assert set(parts) == {"loss", "x_outputs", "x_parameters", "z_outputs", "z_parameters", "kl", "channel", "center"}
    for name in ("x_outputs", "x_parameters", "z_outputs", "z_parameters", "channel"):
        assert float(parts[name].detach().max()) < 1e-12, name
    assert float(parts["kl"].detach().abs().max()) < 1e-9


def test_a_student_of_splits_learns_the_coarse_part_only(counting, batch):
    counting.objective(counting.parts(batch, step=3)).mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in counting.representation.parameters())
    assert all(torch.isfinite(p.grad).all() for p in counting.flow.parameters())
    assert any(p.grad.abs().max() > 0 for p in counting.flow.parameters())


def test_a_student_of_splits_answers_in_one_pass_what_its_noise_says(counting, batch):
    """The image of the noise that the teacher makes of an image has its coarse counts, if the student is the teacher."""
    images, context, keys = counting.inputs(batch)
    found = counting.representation.pairing(counting.teacher.flow, counting.flow).from_data(images, context, keys)
    torch.testing.assert_close(found.made, found.data, rtol=0, atol=1e-6)
    sums = images.flatten(1).sum(1)
    coarse = counting.representation.decode(found.made, sums)
    assert torch.equal(coarse, counting.representation.tree.grids(images.long())[counting.representation.coarse_levels])


# -- checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(run_folders, root_file, tmp_path_factory, fit):
    """A student trained on the fixture's teacher, its run folder, and the teacher's weights before training."""
    folder = tmp_path_factory.mktemp("students")
    shutil.copytree(run_folders["teacher"], folder / "teacher")
    torch.manual_seed(0)
    student = Student(init_from=str(folder / "teacher"), flow=FlowChanges(dropout=0.1))
    before = {k: v.clone() for k, v in student.teacher.state_dict().items()}
    trainer = fit(student, root_file, folder / "student", trainer={"limit_train_batches": 2, "limit_val_batches": 1})
    shutil.rmtree(folder / "teacher")
    return student, folder / "student", before, trainer


def test_the_teacher_stays_frozen_and_out_of_the_checkpoint(trained):
    student, folder, before, trainer = trained
    assert student.training
    assert not any(m.training for m in student.teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in student.teacher.state_dict().items())
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    held = sum(p.numel() for p in student.flow.parameters())
    assert sum(p.numel() for p in student.parameters()) == held
    assert sum(p.numel() for g in trainer.optimizers[0].param_groups for p in g["params"]) == held
    assert {k.partition(".")[0] for k in checkpoint["state_dict"]} == {"features", "representation", "flow"}
    assert "init_from" not in checkpoint["calosim"]["init"]


def test_a_student_loads_and_simulates_without_its_teacher(trained, showers, root_file, tmp_path):
    _, folder, before, _ = trained
    student = ShowerModel.load(folder)
    assert isinstance(student, Student)
    for name in ("features", "representation"):
        assert all(torch.equal(v, before[f"{name}.{k}"]) for k, v in getattr(student, name).state_dict().items())
    simulator = FastSimulator.load(folder)
    some = showers.select(slice(0, 9))
    images = simulator.sample(some.particles, some.pdg, seed=1, photon_sum=some.photon_sum)
    assert images.shape == (9, 44, 44)
    assert (images.sum((1, 2)) > 0).all()
    from lightning import Trainer

    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer = Trainer(**quiet, enable_checkpointing=False, limit_test_batches=1, limit_predict_batches=1)
    datamodule = RootDataModule(str(root_file), batch_size=4)
    assert trainer.test(student, datamodule, verbose=False)[0]["test/loss"] < 3
    assert trainer.predict(student, datamodule)[0]["images"].shape == (4, 44, 44)
    with pytest.raises(ValueError, match=r"--model\.init_from"):
        trainer.validate(student, datamodule, verbose=False)


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        (FlowChanges(bins=5), "to start from with bins 5, got 4"),
        (FlowChanges(hidden=(9, 9)), r"hidden layers not narrower than \[9, 9\], got \[8, 8\]"),
    ],
)
def test_a_student_that_is_no_start_is_refused(flow, said, trained, run_folders):
    with pytest.raises(ValueError, match=said):
        Student(init_from=str(run_folders["teacher"]), flow=flow, start=str(trained[1]), losses=OUTPUTS_ALONE)


def test_a_student_is_no_teacher(trained):
    _, folder, _, _ = trained
    with pytest.raises(ValueError, match="expected a teacher"):
        Student(init_from=str(folder))


def test_the_teacher_goes_where_the_student_goes(teacher_file):
    student = Student(init_from=teacher_file()).double()
    assert all(p.dtype == torch.float64 for p in student.teacher.parameters())
    assert next(student.to("meta").teacher.parameters()).device.type == "meta"


# -- processes ------------------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
import torch
from lightning import Trainer, seed_everything
from callbacks import PhysicsLossScaler
from calosim.models.losses import ChannelLoss, StudentLosses
from calosim.models.student import Student
from calosim.data.datamodule import RootDataModule

teacher, root, folder, devices, batch_size = *sys.argv[1:4], *map(int, sys.argv[4:])
seed_everything(1)
losses = StudentLosses(channel=ChannelLoss(0.01))
student = Student(init_from=teacher, losses=losses, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
scaler = PhysicsLossScaler(scope="all")
trainer = Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    default_root_dir=folder, callbacks=[scaler],
)
trainer.fit(student, RootDataModule(root, batch_size=batch_size))
losses = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
weights = torch.cat([p.detach().flatten() for p in student.parameters()])
result = {"losses": losses, "weights": [float(weights.double().sum()).hex(), float(weights.norm())],
          "rows": scaler.weights.tolist()}
with open(f"{folder}/{devices}-{trainer.global_rank}.json", "w") as stream:
    json.dump(result, stream)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(teacher_file, root_file, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    path = teacher_file()
    for devices, batch_size in ((1, 32), (2, 16)):
        words = [sys.executable, "script.py", path, root_file, tmp_path, devices, batch_size]
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("1-0", "2-0", "2-1"))
    assert first == second
    assert first["rows"] == one["rows"]
    assert first["losses"] == pytest.approx(one["losses"], rel=PROCESSES)
    assert first["weights"][1] == pytest.approx(one["weights"][1], rel=PROCESSES)
