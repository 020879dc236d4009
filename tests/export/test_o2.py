"""`calosim export` and `calosim export --check` by the real command."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys

import numpy as np
import pytest

from calosim.export.builder import Builder
from calosim.export.card import card
from calosim.export.check import _differences
from calosim.export.client import CARD, CHECK, RECORD, Client, read_scales, scales_text
from calosim.io import read_json, write_json


def test_the_folder_is_what_o2_expects(exported):
    import onnxruntime

    names = {"generator.onnx", "generator_scales.txt", "classifier.onnx", "classifier_scales.txt", "export.json", CARD}
    assert {path.name for path in exported.iterdir()} == names
    one = onnxruntime.InferenceSession(str(exported / "generator.onnx"), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in one.get_inputs()] == [
        ("noise", "tensor(float)", [1, 10]),
        ("features", "tensor(float)", [1, 9]),
    ]
    assert one.get_outputs()[0].type == "tensor(float)"
    assert one.get_outputs()[0].shape == [44, 44]
    text = (exported / "generator_scales.txt").read_bytes()
    assert text == b"#means\n" + b"0.0\n" * 9 + b"\n#scales\n" + b"1.0\n" * 9
    assert Client(exported).wrong == []
    card = (exported / CARD).read_text()
    keys = (
        "ZDCFastSimModelPathNeutron=generator.onnx",
        "ZDCFastSimClassifierPath=classifier.onnx",
        "buildBeamLine=false",
    )
    for word in (*keys, "maxAbsZTracking=1200", "data hash", "Not checked yet", "MB", "ONNX Runtime", "so unlikely"):
        assert word in card


def test_a_check_passes_and_is_kept_in_the_card(exported, root_file, tmp_path, command, capsys):
    folder = tmp_path / "o2"
    shutil.copytree(exported, folder)
    words = ["--check", folder, "--most", 40, "--shuffles", 50]
    assert command("export", *words, "--primaries", "conf/demo/primaries.csv") == 0
    assert "passed" in capsys.readouterr().out
    assert command("export", *words, "--montecarlo", root_file, "--primaries", "conf/demo/primaries.csv") == 0
    assert json.loads((folder / CHECK).read_text())["reference"] == "Monte Carlo"
    assert command("export", *words, "--montecarlo", root_file) == 0
    found = json.loads((folder / CHECK).read_text())
    assert found["responses"] == found["lit"] + found["dark"] == 40
    assert found["failed"] == []
    assert 0 < found["dark"] < 40
    kept = (folder / CARD).read_text()
    assert "| Monte Carlo |" in kept
    capsys.readouterr()
    assert command("export", *words, "--primaries", "conf/demo/primaries.csv", "--responses", 2) == 0
    assert re.search(r"keeps its check by 40 responses; this one has \d+\n", capsys.readouterr().err)
    assert (folder / CARD).read_text() == kept


def test_a_check_finds_files_that_are_not_of_these_models(exported, run_folders, root_file, tmp_path, error_of):
    folder = tmp_path / "o2"
    shutil.copytree(exported, folder)
    record = json.loads((folder / "export.json").read_text())
    del record["models"]["acceptance"]
    (folder / "export.json").write_text(json.dumps(record))
    line = error_of("export", "--check", folder, "--montecarlo", root_file, "--most", 40, "--shuffles", 20)
    assert "the check failed: " in line
    assert "images with light differ from Python's" in line
    assert "the classifier cut" not in line
    record["models"]["shape"]["run"] = "/nowhere"
    (folder / "export.json").write_text(json.dumps(record))
    assert "no longer there to compare with" in error_of("export", "--check", folder, "--montecarlo", root_file)


def test_what_a_classifier_cuts_is_told_apart(exported, tmp_path, command, error_of):
    folder = tmp_path / "o2"
    shutil.copytree(exported, folder)
    words = ["--check", folder, "--primaries", "conf/demo/primaries.csv", "--responses", 40, "--shuffles", 9]
    g = Builder()
    no = g("Mul", g("ReduceSum", "features", np.array([1]), keepdims=1), 0.0)
    content = g.model({"features": 9}, (no, "simulate", (1, 1)), "")
    (folder / "classifier.onnx").write_bytes(content)
    record = read_json(folder / RECORD)
    record["files"]["classifier.onnx"]["sha256"] = hashlib.sha256(content).hexdigest()
    write_json(folder / RECORD, record)
    line = error_of("export", *words)
    assert re.search(r"the classifier cut [1-9]\d* responses of \d+ that should have light in 0\.5% at most", line)
    assert "differ from Python's" not in line
    found = json.loads((folder / CHECK).read_text())
    assert found["spared"] == found["dark"] == found["responses"] > found["cut"] > 0
    assert found["lit"] == found["different_images"] == found["moved_photons"] == 0


def test_differences_are_of_rows_with_light():
    images, equal = np.zeros((2, 6, 2, 2), np.int64)
    images[0] = equal[0] = 5  # the same
    images[1, 0], equal[1, 0] = (4, 1), (2, 3)  # two photons moved
    images[2, 1, 1] = 7  # light in one alone: seven photons that came from nowhere
    equal[3] = 9  # cut
    simulated = np.array([True, True, True, False, False, True])  # the last two are dark in both
    found = _differences(images, equal, simulated)
    assert found == {
        "dark": 3,
        "lit": 3,
        "different_images": 2,
        "different_sums": 1,
        "moved_photons": 2,
        "spared": 2,
        "cut": 1,
    }


def test_without_an_acceptance_model_all_are_simulated(run_folders, root_file, tmp_path, command, error_of):
    words = ["--shower", run_folders["splits"], "--photons", run_folders["photons"], "--out", tmp_path / "o2"]
    assert command("export", *words) == 0
    card = (tmp_path / "o2" / CARD).read_text()
    assert "`classifier.onnx`: `features` as before; 1 always" in card
    assert command("export", "--check", tmp_path / "o2", "--montecarlo", root_file, "--most", 40, "--shuffles", 9) == 0
    found = json.loads((tmp_path / "o2" / CHECK).read_text())
    assert (found["lit"], found["spared"], found["cut"]) == (40, 0, 0)
    (tmp_path / "o2" / "classifier.onnx").unlink()
    line = error_of("export", "--check", tmp_path / "o2", "--montecarlo", root_file)
    assert "classifier.onnx: expected the file that was exported" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected a shower model and a photon-sum model to export"),
        (["--check", "conf"], "conf: expected a folder made by calosim export"),
    ],
)
def test_refusals(words, said, error_of, tmp_path):
    assert said in error_of("export", *words, "--out", tmp_path / "o2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("to", "name"), [("onnx", "simulator.onnx"), ("torchscript", "simulator.pt")])
def test_a_folder_for_any_program(to, name, run_folders, tmp_path, command, error_of, monkeypatch):
    if to == "torchscript":
        monkeypatch.setitem(sys.modules, "onnx", None)
    words = ["--shower", run_folders["splits"], "--photons", run_folders["photons"], "--to", to]
    assert command("export", *words, "--out", tmp_path / "any") == 0
    assert {path.name for path in (tmp_path / "any").iterdir()} == {name, "export.json", CARD}
    card = (tmp_path / "any" / CARD).read_text()
    assert "`images` (N, 44, 44)" in card
    assert "ZDCSimParam" not in card
    assert "classifier" not in card
    line = error_of("export", "--check", tmp_path / "any", "--primaries", "conf/demo/primaries.csv")
    assert "expected generator.onnx, as an export to O2 has it" in line


def test_a_card_shows_the_evaluation_of_the_shape_model(exported, tmp_path):
    record = json.loads((exported / "export.json").read_text())
    record["models"]["shape"]["run"] = str(tmp_path)
    (tmp_path / "evaluation").mkdir()
    means = {name: {"mean": {"ws_all": 1, "mae_cond_all": 2}} for name in ("chain", "floor")}
    areas = {"chain": {"verdicts": {"images": {"auc": 0.5}, "features": {"auc": 0.6}}}}
    found = {"images": means, "c2st": {"candidates": areas}, "photons": ["x"]}
    found["weights"] = [{"hash": record["models"][role]["weights"]} for role in ("photons", "shape")]
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps(found))
    assert (
        "| full chain | 1.00 | 2.00 | 0.500 | 0.600 |\n| floor (Monte Carlo, other seed) | 1.00 | 2.00 |  |  |"
        in card(record)
    )


def test_an_evaluation_of_other_weights_is_not_quoted(run_folders, tmp_path, command, capfd, train_on):
    run = shutil.copytree(run_folders["splits"], tmp_path / "r")
    models = ["--shower", run, "--photons", run_folders["photons"]]
    judge = ["--rows", 20, "--runs", 1, "--responses", 2, "--classifier", "false", "--quiet"]
    assert command("evaluate", *models, *judge, "--out", run / "evaluation") == 0
    assert command("export", *models, "--out", tmp_path / "fresh") == 0
    assert "Not quoted" not in capfd.readouterr().err
    assert "| full chain |" in (tmp_path / "fresh" / CARD).read_text()
    train_on(run)
    assert command("export", *models, "--out", tmp_path / "stale") == 0
    said = "Not quoted: r/evaluation is of other weights than exported (shape)"
    assert said in capfd.readouterr().err
    assert said in (text := (tmp_path / "stale" / CARD).read_text())
    assert "| full chain |" not in text


def test_a_check_is_of_the_files_and_models_that_were_exported(
    exported, run_folders, tmp_path, error_of, train_on, command
):
    folder = shutil.copytree(exported, tmp_path / "o2")
    words = ["export", "--check", folder, "--primaries", "conf/demo/primaries.csv"]
    content = (folder / "generator.onnx").read_bytes()
    (folder / "generator.onnx").write_bytes((folder / "classifier.onnx").read_bytes())
    assert "generator.onnx: expected the file that was exported, of SHA-256" in error_of(*words)
    (folder / "generator.onnx").unlink()
    assert "got none" in error_of(*words)
    (folder / "generator.onnx").write_bytes(content)
    run = shutil.copytree(run_folders["splits"], tmp_path / "r")
    record = json.loads((folder / "export.json").read_text())
    record["models"]["shape"]["run"] = str(run)
    (folder / "export.json").write_text(json.dumps(record))
    train_on(run)
    assert f"older than the weights of {run}" in error_of(*words)


def test_nothing_is_written_over(exported, run_folders, error_of):
    words = ["--shower", run_folders["splits"], "--photons", run_folders["photons"]]
    assert "exists already" in error_of("export", *words, "--out", exported)


def test_scales(tmp_path):
    path = tmp_path / "scales.txt"
    means, scales = np.linspace(-1, 1, 9), np.linspace(0.1, 1e4, 9)
    path.write_text(scales_text(means, scales))
    assert np.array_equal(read_scales(path), (means, scales))
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ValueError, match="expected #means, 9 numbers"):
        read_scales(path)


def test_without_onnx_a_line_says_so(run_folders, tmp_path, error_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    words = ["--shower", run_folders["splits"], "--photons", run_folders["photons"]]
    line = error_of("export", *words, "--out", tmp_path / "o2")
    assert "expected onnx for exports, which is not installed; try pip install 'calosim[export]'" in line
    assert not list(tmp_path.iterdir())
