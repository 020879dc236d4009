"""The command finds what there is to report."""

from __future__ import annotations

import shutil

from calosim.runs import Run


def test_one_folder_alone(folders, command, parsed, tmp_path):
    words = ["report", "--runs", f"[{folders / 'explained'}]", "--out", tmp_path / "one.html", "--quiet", "true"]
    assert command(*words) == 0
    assert [h.partition(":")[0] for h in parsed((tmp_path / "one.html").read_text()).headings] == ["Explanation"]


def test_copies_in_an_ensemble_and_evaluations_of_a_study_are_not_reported(folders, command, parsed, tmp_path):
    shutil.copytree(folders / "teacher", tmp_path / "ensemble")
    (tmp_path / "ensemble" / Run.ENSEMBLE).write_text("{}")
    shutil.copytree(folders / "study", tmp_path / "study")
    shutil.copytree(folders / "judged", tmp_path / "study" / "runs" / "judged")
    assert command("report", "--runs", f"[{tmp_path}]", "--out", tmp_path / "r.html", "--quiet", "true") == 0
    assert parsed((tmp_path / "r.html").read_text()).headings == ["At a glance", "Study: study"]


def test_nothing_to_report_is_one_line(command, tmp_path, capfd):
    assert command("report", "--runs", f"[{tmp_path}]", "--out", tmp_path / "r.html") == 2
    assert "nothing to report" in capfd.readouterr().err
    assert command("report", "--runs", f"[{tmp_path}/no]", "--out", tmp_path / "r.html") == 2
    assert "no such folder" in capfd.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_what_is_damaged_is_named_and_left_out(folders, command, parsed, tmp_path, capfd):
    for name in ("teacher", "<photons> & co", "judged", "explained"):
        shutil.copytree(folders / name, tmp_path / name)
    (tmp_path / "teacher" / Run.RECORD).write_text('{"format": 2, "mod')
    (tmp_path / "explained" / "explain.json").write_text("[]")
    answers = tmp_path / "judged" / "answers.npz"
    answers.write_bytes(answers.read_bytes()[:2000])
    capfd.readouterr()
    assert command("report", "--runs", tmp_path, "--out", tmp_path / "r.html", "--quiet", "true") == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("calosim: ")]
    assert all(line.endswith("; left out") for line in said)
    assert {name for name in ("run.json", "answers.npz", "explained") if any(name in line for line in said)} == {
        *("run.json", "answers.npz", "explained")
    }
    assert parsed((tmp_path / "r.html").read_text()).headings == ["What was trained", "Training curves"]
    assert "&lt;photons&gt;" in (tmp_path / "r.html").read_text()
