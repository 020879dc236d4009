"""A flow's settings: plain values and back, and changes that have the same fields."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import get_type_hints

import pytest

from calosim.flows import FlowChanges, FlowConfig, maf

CONFIG = FlowConfig(
    transforms=3, hidden=(8, 9), bins=5, bound=7.0, dropout=0.1, context_share=0.2, permutation="random", seed=4
)


@pytest.mark.parametrize("config", [FlowConfig(), CONFIG])
def test_plain_values_lead_back(config):
    plain = json.loads(json.dumps(config.to_plain()))
    assert FlowConfig.from_plain(plain) == config
    assert FlowConfig.from_plain(config) is config
    assert set(plain) == {f.name for f in fields(FlowConfig)}


def test_changes_have_the_fields_of_settings_and_change_nothing_by_themselves():
    assert [f.name for f in fields(FlowChanges)] == [f.name for f in fields(FlowConfig)]
    of_changes, of_settings = get_type_hints(FlowChanges), get_type_hints(FlowConfig)
    assert of_changes == {name: hint | None for name, hint in of_settings.items()}
    assert CONFIG.changed(FlowChanges()) == CONFIG
    assert FlowConfig().changed(FlowChanges(**CONFIG.to_plain())).to_plain() == CONFIG.to_plain()
    changed = CONFIG.changed(FlowChanges(bins=0, dropout=0.0))  # what is false is given all the same
    assert (changed.bins, changed.dropout, changed.hidden) == (0, 0.0, (8, 9))


def test_settings_are_frozen_and_a_builder_replaces_them_by_name():
    with pytest.raises(FrozenInstanceError):
        CONFIG.bins = 3
    flow = maf(6, 2, CONFIG, transforms=1, bins=2)
    assert len(flow.transform.transforms) == 1
    assert flow.transform.transforms[0].bins == 2
    with pytest.raises(TypeError, match="binz"):
        maf(6, 2, CONFIG, binz=2)
