"""The settings of a student's losses: what is switched off, the ramp, and refusals when they are made."""

from __future__ import annotations

import math

import pytest

from calosim.models.losses import ChannelLoss, LossWeights, StudentLosses


def test_weights_are_named_and_what_is_switched_off_is_not():
    losses = StudentLosses(
        x=LossWeights(1.0, 0.0, 0.5), z=LossWeights(0.0, 0.0, 0.0), channel=ChannelLoss(0.1), center=2.0
    )
    assert losses.weights() == {"x_outputs": 1.0, "x_parameters": 0.5, "channel": 0.1, "center": 2.0}
    parts = ("outputs", "intermediate", "parameters")
    assert StudentLosses().weights() == {f"{space}_{part}": 1.0 for space in "xz" for part in parts}


def test_the_channel_loss_is_ramped_up_in_training_only():
    losses = StudentLosses(channel=ChannelLoss(2.0, warmup_steps=3))
    assert [losses.weights(step)["channel"] for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert losses.weights()["channel"] == 2.0


@pytest.mark.parametrize("part", ["outputs", "intermediate", "parameters"])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_negative_weights_are_refused_when_they_are_made(part, value):
    with pytest.raises(ValueError, match=f"at least 0 for {part}, got"):
        LossWeights(**{part: value})


def test_an_unknown_scale_of_channels_is_refused():
    with pytest.raises(ValueError, match="unknown channel scale 'none'; expected one of photons, poisson, relative"):
        ChannelLoss(scale="none")
