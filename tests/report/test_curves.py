"""Curves that share a panel are of one quantity, over rows of one kind."""

from __future__ import annotations

import pytest

import calosim.plots
from calosim.io import atomic_write, csv_text, write_json
from calosim.report.sections import curves
from calosim.runs import FORMAT, Run


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """Draws the curves of runs, ``panels({name: (model, particle, columns)})``, and returns the panels by kind of model."""

    def make(runs):
        drawn = []
        draw = calosim.plots.training_curves
        monkeypatch.setattr(
            calosim.plots, "training_curves", lambda shown, path: drawn.append(shown) or draw(shown, path)
        )
        for name, (model, particle, columns) in runs.items():
            record = {"format": FORMAT, "model": model, "representation": None, "data": {"particle": particle}}
            write_json(tmp_path / name / Run.RECORD, record)
            lines = list(zip(*columns.values(), strict=True))
            atomic_write(
                tmp_path / name / Run.METRICS, csv_text(["step", *columns], [[i, *x] for i, x in enumerate(lines)])
            )
        section = curves([tmp_path / name for name in runs])
        return dict(zip([p.caption.partition(":")[0] for p in section.pictures], drawn, strict=True))

    return make


def test_training_and_validation_are_of_the_same_quantity(panels):
    bayes = {"train/kl": [5, 4], "train/nll": [3, 2], "train/loss": [8, 6], "val/loss": [2, 3]}
    student = {"train/kl": [9, 7], "train/loss": [90, 70], "val/kl": [8, 9], "val/loss": [70, 60]}
    found = panels({"bayes": ("PhotonSum", None, bayes), "student": ("Student", None, student)})
    ((label, runs),) = found["PhotonSum"].values()
    (curve,) = runs.values()
    assert label == "negative log-likelihood, nats"
    assert (curve.train, curve.val) == ([(0, 3), (1, 2)], [(0, 2), (1, 3)])
    assert curve.best == 0
    ((label, runs),) = found["Student"].values()
    (curve,) = runs.values()
    assert label == "divergence from the teacher, nats"
    assert (curve.train, curve.val) == ([(0, 9), (1, 7)], [(0, 8), (1, 9)])
    assert curve.best == 1  # by the loss, which decides about the checkpoint


def test_panels_are_of_one_particle_type_in_the_order_of_the_study(panels):
    logged = {"train/loss": [5, 4], "val/loss": [4, 3], "val/ws": [1, ""]}
    kinds = {"gd": ("FineTune", 3122), "dg": ("FineTune", 22), "own": ("Teacher", 3122), "all": ("Teacher", None)}
    found = panels({name: (*kind, logged) for name, kind in kinds.items()})
    assert list(found) == ["Teacher"]
    names = {title: [run.rpartition("/")[2] for run in panel.runs] for title, panel in found["Teacher"].items()}
    assert names == {"all particles": ["all"], "γ": ["dg"], "Λ": ["gd", "own"]}  # and no picture of a single point


def test_real_runs_have_curves(run_folders):
    section = curves([run_folders["teacher"], run_folders["photons"]])
    assert [picture.caption.partition(":")[0] for picture in section.pictures] == ["Teacher, pixels", "PhotonSum"]
    assert "nats a pixel" in section.pictures[0].caption
    assert not curves([]).pieces
