"""A schedule that knows how long the training is."""

from __future__ import annotations

import itertools

import pytest
import torch

from calosim.models.optim import WarmupCosine
from calosim.models.photon_sum import PhotonSum


def rates(steps: int, **settings) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = WarmupCosine(optimizer, **settings)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_it_rises_linearly_and_falls_to_what_is_to_be_left():
    found = rates(101, warmup_steps=9, final=0.1, total_steps=100)
    # Before the cosine bends, the rise is a straight line.
    assert found[0] == pytest.approx(2.0 / 10, rel=1e-3)
    assert found[4] == pytest.approx(2.0 * 5 / 10, rel=1e-2)
    assert max(found) == max(found[:15])
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))
    assert found[50] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert found[100] == pytest.approx(2.0 * 0.1)


def test_a_training_of_few_steps_still_reaches_its_rate():
    found = rates(12, warmup_steps=50, total_steps=12)
    assert max(found) > 0.8 * 2.0
    assert found[:3] == sorted(found[:3])


def test_without_an_end_it_stays():
    assert rates(20, warmup_steps=3)[3:] == [2.0] * 17


@pytest.mark.parametrize("settings", [{"warmup_steps": -1}, {"final": 1.5}, {"total_steps": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected warmup_steps of at least 0"):
        rates(1, **settings)


def test_a_training_tells_it_its_length_and_it_is_stepped_after_every_batch(root_file, tmp_path, fit):
    module = PhotonSum(hidden=(4,), components=2, scheduler=lambda optimizer: WarmupCosine(optimizer, warmup_steps=2))
    trainer = fit(module, root_file, tmp_path, epochs=2, trainer={"limit_train_batches": 4, "limit_val_batches": 1})
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert (schedule.total_steps, schedule.last_epoch) == (8, 8)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.04)


def test_by_epochs_it_is_the_usual_cosine():
    rates = []
    for kind in (
        lambda o: WarmupCosine(o, warmup_steps=0, final=0.0, total_steps=6, every="epoch"),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=6),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule = kind(optimizer)
        own = []
        for _ in range(7):
            own.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates.append(own)
    assert rates[0] == pytest.approx(rates[1], abs=1e-12)
    with pytest.raises(ValueError, match="expected every step or epoch, got 'day'"):
        WarmupCosine(optimizer, every="day")


def test_a_resumed_schedule_follows_its_new_length():
    def made(total):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        return optimizer, WarmupCosine(optimizer, warmup_steps=0, final=0.0, total_steps=total)

    optimizer, old = made(4)
    for _ in range(3):
        optimizer.step()
        old.step()
    optimizer, new = made(12)
    new.load_state_dict(old.state_dict())
    assert (new.last_epoch, new.total_steps) == (3, 12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * new.factor(3))
    assert new.factor(3) > 2 * old.factor(3)
