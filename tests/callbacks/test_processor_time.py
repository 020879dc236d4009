"""A training of so many minutes: it ends when they are spent, its schedule then too, and a resumed one goes on counting."""

from __future__ import annotations

import types

import lightning.pytorch as pl
import pytest
import torch

from callbacks import ProcessorTime
from calosim.models.optim import WarmupCosine

#: Seconds that a step and a validation take, and a fit before its first step.
STEP, VALIDATION, START = 1.5, 40.0, 6.0


class Model(pl.LightningModule):
    """Learns nothing, keeps the learning rates of its steps, and takes the processor time that it is told to."""

    def __init__(self, clock: types.SimpleNamespace):
        super().__init__()
        self.theta, self.clock, self.rates = torch.nn.Parameter(torch.zeros(())), clock, []

    def setup(self, stage):
        self.clock.now += START

    def training_step(self, batch):
        self.clock.now += STEP
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.theta.square() + batch.sum() * 0

    def validation_step(self, batch):
        self.clock.now += VALIDATION

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 1.0)
        scheduler = WarmupCosine(optimizer, warmup_steps=3, final=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.fixture
def clock(monkeypatch) -> types.SimpleNamespace:
    found = types.SimpleNamespace(now=100.0)
    module = types.SimpleNamespace(process_time=lambda: found.now)
    monkeypatch.setattr("callbacks.processor_time.time", module)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return found


def fit(clock, minutes, folder, ckpt_path=None, **more):
    model, callback = Model(clock), ProcessorTime(minutes)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[
            callback,
            pl.callbacks.ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False),
        ],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": -1, **more},
    )
    loader = torch.utils.data.DataLoader(torch.zeros(10, 1))
    trainer.fit(model, loader, loader, ckpt_path=ckpt_path)
    return trainer, model, callback


def test_ends_when_the_time_is_spent_and_the_schedule_with_it(clock, tmp_path):
    trainer, model, callback = fit(clock, 0.5, tmp_path)
    # 30 s of each of two threads: six before the first of the steps, and validation is free.
    assert trainer.global_step == (2 * 30 - START) / STEP + 1  # the step in which the time runs out is made
    assert callback.spent == pytest.approx(30 + STEP / 2, abs=1)
    assert model.rates[:4] == sorted(model.rates[:4])
    assert model.rates[4:] == sorted(model.rates[4:], reverse=True)
    assert model.rates[-1] == pytest.approx(0.1, abs=0.01)
    middle = model.rates[int((30 - START) / STEP)]
    assert middle == pytest.approx(0.55, abs=0.07)


def test_a_resumed_training_goes_on_counting(clock, tmp_path):
    trainer, _, callback = fit(clock, 0.3, tmp_path)
    done, spent = trainer.global_step, callback.spent
    trainer, model, callback = fit(clock, 0.5, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step > done
    assert spent < 0.3 * 60 + 3
    assert callback.spent == pytest.approx(30, abs=2)
    assert model.rates[-1] == pytest.approx(0.1, abs=0.02)
    trainer, model, _ = fit(clock, 0.3, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert model.rates == [], "expected no step beyond the time"


@pytest.mark.parametrize("more", [{"max_epochs": 3}, {"max_steps": 7}])
def test_nothing_else_may_end_the_training(clock, tmp_path, more):
    (name,) = more
    with pytest.raises(ValueError, match=f"ProcessorTime: expected {name} -1, for time alone to end the training, got"):
        fit(clock, 1, tmp_path, **more)


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan")])
def test_nonsense_is_refused(minutes):
    with pytest.raises(ValueError, match="ProcessorTime: expected positive minutes, got"):
        ProcessorTime(minutes)


def test_a_part_of_the_time_may_be_anothers():
    assert ProcessorTime(10, share=0.5).minutes == 5
    for share in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="ProcessorTime: expected a share above 0 and up to 1, got"):
            ProcessorTime(10, share=share)
