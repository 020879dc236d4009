"""Curves that share a panel are of one quantity, over rows of one kind."""

from __future__ import annotations

import shutil

import pytest

import calosim.plots
from calosim.evaluation.stored import TITLES, Evaluation
from calosim.io import atomic_write, csv_text, read_json, write_json
from calosim.models.checkpoints import weights_of
from calosim.report.sections import (
    VERDICTS,
    answer,
    curves,
    evaluation,
    explanation,
    picture_of,
    study,
    trainings,
    verdict,
)
from calosim.runs import FORMAT, Run

LOSSES = {"Teacher": "negative log-likelihood", "PhotonSum": "negative log-likelihood"}


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
            record = {
                "format": FORMAT,
                "model": model,
                "loss": LOSSES.get(model, "loss"),
                "unit": "nats an image",
                "representation": None,
                "data": {"particle": particle},
            }
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
    assert label == "negative log-likelihood, nats an image"
    assert (curve.train, curve.val) == ([(0, 3), (1, 2)], [(0, 2), (1, 3)])
    assert curve.best == 0
    ((label, runs),) = found["Student"].values()
    (curve,) = runs.values()
    assert label == "divergence from the teacher, nats an image"
    assert (curve.train, curve.val) == ([(0, 9), (1, 7)], [(0, 8), (1, 9)])
    assert curve.best == 1  # by the loss, which decides about the checkpoint


def test_panels_are_of_one_particle_type_in_the_order_of_the_study(panels):
    logged = {"train/loss": [5, 4], "val/loss": [4, 3], "val/ws": [1, ""]}
    kinds = {"gd": ("Teacher", 3122), "dg": ("Teacher", 22), "own": ("Teacher", 3122), "all": ("Teacher", None)}
    found = panels({name: (*kind, logged) for name, kind in kinds.items()})
    assert list(found) == ["Teacher"]
    names = {title: [run.rpartition("/")[2] for run in panel.runs] for title, panel in found["Teacher"].items()}
    assert names == {"all particles": ["all"], "γ": ["dg"], "Λ": ["gd", "own"]}  # and no picture of a single point


def test_real_runs_have_curves(run_folders):
    section = curves([run_folders["teacher"], run_folders["photons"]])
    assert [picture.caption.partition(":")[0] for picture in section.pictures] == ["Teacher, pixels", "PhotonSum"]
    assert "nats a pixel" in section.pictures[0].caption
    assert not curves([]).pieces


def judged(auc, low, controls=None):
    """A C2ST of a candidate whose classifiers have these areas and lower ends."""
    verdicts = {
        name: {"auc": a, "error": 0.01, "low": b} for name, a, b in zip(("images", "features"), auc, low, strict=True)
    }
    damaged = {} if controls is None else {"damaged_10": {"verdicts": {"features": {"low": controls}}}}
    return {"candidates": {"model": {"verdicts": verdicts}}, "controls": damaged}


@pytest.mark.parametrize(
    ("test", "level", "words"),
    [
        ({}, "none", "not put before a classifier"),
        ({"reason": "needs 20 primaries"}, "none", "not put before a classifier"),
        (judged((0.51, 0.52), (0.49, 0.48), 0.55), "good", "a classifier cannot tell"),
        (judged((0.51, 0.52), (0.49, 0.48)), "good", "a classifier cannot tell"),
        (judged((0.51, 0.52), (0.49, 0.48), 0.49), "none", "a classifier cannot tell, but neither"),
        # The classifier that can tell decides, not the higher area of one that cannot.
        (judged((0.58, 0.62), (0.55, 0.49)), "good", "tells it in 58\u00a0% of pairs"),
        (judged((0.6, 0.79), (0.55, 0.76)), "fair", "tells it in 79\u00a0% of pairs"),
        (judged((0.98, 0.91), (0.97, 0.9)), "poor", "tells it in 98\u00a0% of pairs"),
    ],
)
def test_verdicts(test, level, words):
    found = verdict(test, "model")
    assert found.level == level
    assert words in found.words


def test_a_line_holds_the_model_against_its_own_floor(folders, tmp_path):
    shutil.copytree(folders / "judged", tmp_path / "judged")
    path = tmp_path / "judged" / Evaluation.RECORD
    record = read_json(path)
    values = {"shape": 6.0, "chain": 12.0, "floor": 8.0, "shape_floor": 3.0}
    record["images"] = {name: {"mean": {"ws_all": ws}, "std": {}, "seconds": 0.002} for name, ws in values.items()}
    record["c2st"] = {"candidates": {"chain": judged((0.7, 0.8), (0.6, 0.7))["candidates"]["model"]}}
    write_json(path, record)
    (_, (pictures,)), (name, (head, lines, _)) = answer([tmp_path / "judged"]).pieces
    assert len(pictures) == 1
    assert (name, head) == ("verdicts", VERDICTS)
    shape, chain = lines
    assert shape[:5] == (TITLES["shape"], "2.00", "–", "–", "2")
    assert chain[:5] == (TITLES["chain"], "1.50", "0.700 ± 0.010", "0.800 ± 0.010", "2")
    assert [line[-1].level for line in lines] == ["none", "poor"]
    # Without a floor of the same sums the ratio says that it is another one.
    del record["images"]["shape_floor"]
    write_json(path, record)
    assert answer([tmp_path / "judged"]).pieces[1][1][1][0][1] == "0.75 (floor of other sums)"
    # Choices on validation rows, and models of photon sums alone, are no answer.
    for key, value in (("split", "val"), ("shape", None)):
        write_json(path, record | {key: value})
        assert not answer([tmp_path / "judged"]).pieces


def test_sections_are_those_with_data(page, parsed):
    headings = parsed(page.read_text()).headings
    # The answer first, what it rests on, and then how it was made.
    first = ["At a glance", "Evaluation", "Study", "Study", "Explanation"]
    assert [h.partition(":")[0] for h in headings] == [*first, "What was trained", "Training curves"]
    assert "<strong>1.61</strong>" in page.read_text()


def test_trainings_are_lines_of_facts(folders, tmp_path):
    shutil.copytree(folders / "teacher", tmp_path / "killed")
    (tmp_path / "killed" / Run.TRAINING).unlink()
    (_, (head, rows)), *details = trainings([folders / "teacher", tmp_path / "killed"]).pieces
    finished, killed = (dict(zip(head, row, strict=True)) for row in rows)
    assert finished["model"] == killed["model"] == "Teacher"
    assert finished["epochs"] == 1
    assert float(finished["minutes"]) >= 0
    assert finished["particle"] == "all"
    assert (killed["epochs"], killed["minutes"]) == ("", "not finished")
    # The command and the settings that were resolved from it.
    assert all("calosim fit" in texts[0] and "seed_everything" in texts[1] for _, (_, texts) in details)


def test_an_evaluation_shows_samples_where_they_were_kept(page, parsed, folders, tmp_path):
    shown = [image["alt"].partition(" of ")[0] for image in parsed(page.read_text()).images]
    assert {"Photon images", "Histograms", "Spectrum"} <= set(shown)
    for name in (Evaluation.RECORD, Evaluation.TABLES):
        shutil.copy(folders / "judged" / name, tmp_path / name)
    section = evaluation(tmp_path)
    assert [name for name, _ in section.pieces] == ["markup", "fold"]
    assert {"WS", "MAE_cond", "MAE_w", "δ", "JaccErr"} <= {row[0] for row in section.pieces[1][1][2]}


def test_a_study_says_what_its_pictures_are(folders, tmp_path, png):
    shutil.copytree(folders / "study", tmp_path / "study")
    for mode in ("shape", "chain"):
        (tmp_path / "study" / f"comparison-{mode}.png").write_bytes(png)
    section = study(tmp_path / "study")
    assert [picture.alt for picture in section.pictures] == [
        "Metrics of all models by particle, full chain",
        "Metrics of all models by particle, shape alone (true photon sums)",
    ]


def test_an_explanation_shows_the_pictures_that_are_there(folders, tmp_path):
    shutil.copytree(folders / "explained", tmp_path / "explained")
    assert [
        len(pictures) for name, (pictures, *_) in explanation(tmp_path / "explained").pieces if name == "figures"
    ] == [
        2,
        1,
    ]
    for name in ("photon_sum_bar", "photon_uncertainty"):
        (tmp_path / "explained" / f"{name}.png").unlink()
    (picture,) = explanation(tmp_path / "explained").pictures
    assert picture.caption.startswith("Photon sum: SHAP values of single responses")


def test_a_run_of_another_format_is_refused(tmp_path):
    (tmp_path / Run.RECORD).write_text("{}")
    with pytest.raises(ValueError, match="expected a run of format"):
        trainings([tmp_path])


def test_what_could_not_be_drawn_is_left_out(folders, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("calosim.plots.responses.save", lambda figure, path: 1 / 0)
        section = evaluation(folders / "judged")
    assert not section.pictures
    drawn = len(evaluation(folders / "judged").pictures)
    assert capsys.readouterr().err.count("was not drawn (ZeroDivisionError") == drawn > 0
    assert picture_of(lambda path: None, "", "") is None


def test_what_is_older_than_the_weights_says_so(folders, tmp_path, train_on):
    everything = shutil.copytree(folders, tmp_path / "all")
    record = read_json(everything / "judged" / Evaluation.RECORD)
    write_json(
        everything / "study" / "comparison.json",
        {"weights": weights_of([everything / "teacher"], everything / "study")},
    )
    explained = read_json(everything / "explained" / "explain.json")
    told = {"weights": weights_of([everything / "<photons> & co"], everything / "explained")}
    write_json(everything / "explained" / "explain.json", explained | told)
    assert [told["model"] for told in record["weights"]] == [
        str(folders / name) for name in ("teacher", "<photons> & co")
    ]

    def words() -> list[str]:
        sections = evaluation(everything / "judged"), study(everything / "study"), explanation(everything / "explained")
        return [str(section.pieces[0][1][0]) for section in (*sections, answer([everything / "judged"]))]

    assert "older than" not in str(words())
    for name in ("teacher", "<photons> & co"):
        train_on(everything / name)
    judged, compared, explained = words()[:3]
    assert "This is older than the weights of teacher, &lt;photons&gt; &amp; co" in judged
    assert "This is older than the weights of teacher" in compared
    assert "This is older than the weights of &lt;photons&gt; &amp; co" in explained
    lines = next(piece[1] for name, piece in answer([everything / "judged"]).pieces if name == "verdicts")
    assert all("(older than the weights of teacher" in line[0] for line in lines)
