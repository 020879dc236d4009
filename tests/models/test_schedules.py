"""A schedule that knows how long the training is."""

from __future__ import annotations

import itertools

import pytest
import torch

from calosim.models.photons import PhotonSum
from calosim.models.schedules import WarmupCosine


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
