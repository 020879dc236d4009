"""Sections say what a folder holds, and leave out what it does not."""

from __future__ import annotations

import shutil

import pytest

from calosim.evaluation.stored import Evaluation
from calosim.io import read_json, write_json
from calosim.models.checkpoints import weights_of
from calosim.report.sections import answer, evaluation, explanation, picture_of, study, trainings
from calosim.runs import Run


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


def test_an_evaluation_shows_answers_where_they_were_kept(page, parsed, folders, tmp_path):
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
    assert len(section.pictures) == len(evaluation(folders / "judged").pictures) - 2 > 0
    assert capsys.readouterr().err.count("was not drawn (ZeroDivisionError") == 2
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
