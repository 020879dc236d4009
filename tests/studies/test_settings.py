"""Settings that are read once for several trainings are those that the command would have for each."""

from __future__ import annotations

import pytest

from calosim.cli import train
from calosim.studies import settings

GD = [
    "-c",
    "conf/finetune/gd.yaml",
    "--model.init_from",
    "runs/a",
    "--data.particle",
    "gamma",
    "--seed_everything",
    "1",
]
OTHER = [
    "-c",
    "conf/finetune/gd.yaml",
    "--model.init_from",
    "runs/b",
    "--data.particle",
    "22",
    "--seed_everything",
    "2",
]


def test_trainings_that_differ_by_seed_particle_or_origin_are_read_once(monkeypatch):
    read, ask = [], train.resolved
    monkeypatch.setattr(settings, "_READ", {})
    monkeypatch.setattr(train, "resolved", lambda words: read.append(words) or ask(words))
    variants = [GD, [*GD[:-1], "2"], [*GD[:3], "runs/b", *GD[4:5], "lambda", *GD[6:]], OTHER, [*GD[:-1], "true"]]
    found = [settings.resolved(words) for words in variants]
    # A code is another kind of value than a name, and `true` is no seed as it is written.
    assert [read.index(words) for words in read] == [0, 1, 2]
    assert found == [ask(words) for words in variants]
    # What one caller does to its settings is none of another's business.
    found[0]["data"]["particle"] = "muon"
    assert settings.resolved(GD)["data"]["particle"] == "gamma"


def test_what_the_command_refuses_is_refused(monkeypatch):
    settings.resolved(GD)
    with pytest.raises(ValueError, match="seed_everything"):
        settings.resolved([*GD[:-1], "many"])


def test_a_changed_configuration_file_is_read_again(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    for epochs in (2, 3):
        overlay.write_text(f"trainer: {{max_epochs: {epochs}}}\n")
        found = settings.resolved(["-c", "conf/photons.yaml", "-c", str(overlay)])
        assert found["trainer"]["max_epochs"] == epochs
