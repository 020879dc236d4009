"""What the parsers take and refuse: lists, patterns, old names, and one line with the nearest name for what is neither."""

from __future__ import annotations

import subprocess
import sys

import pytest

from calosim.cli.parser import one_line
from calosim.cli.tools import TOOLS, check, resolved, submit
from calosim.cli.train import parsed
from calosim.cli.train import resolved as trained
from calosim.io import read_yaml, shipped_config

FIT = ["fit", "-c", "conf/teacher.yaml"]
EVALUATE, COMPARE = ["evaluate", "--out", "e"], ["compare", "--plan", "p"]

# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = {
    "unknown option --data.batchsize; did you mean --data.batch_size?": [*FIT, "--data.batchsize", "3"],
    "unknown option --batch_size; did you mean --data.batch_size?": [*FIT, "--batch_size", "3"],
    "unknown option --model.flow.hiden; did you mean --model.flow.hidden?": [*FIT, "--model.flow.hiden=[8]"],
    "unknown option --model.hiden; did you mean --model.hidden?": ["fit", "--model", "PhotonSum", "--model.hiden", "8"],
    "unknown option --model.optimizer.lrr; did you mean --model.optimizer.lr?": [*FIT, "--model.optimizer.lrr", "3"],
    "unknown option --trainer.maxepochs; did you mean --trainer.max_epochs?": [*FIT, "--trainer.maxepochs", "3"],
    "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs?": [*FIT, "--trainer.max_epoch", "3"],
    "unknown option --trainer.callbacks.rws; did you mean --trainer.callbacks.rows?": [
        *FIT,
        "--trainer.callbacks.rws",
        "3",
    ],
    "unknown option --best.moniter; did you mean --best.monitor?": [*FIT, "--best.moniter", "x"],
    "unknown option --xyzzy": [*FIT, "--xyzzy", "3"],
    "unknown option --showerr; did you mean --shower?": [*EVALUATE, "--showerr", "x"],
    "unknown option --dryrun; did you mean --dry_run?": [*COMPARE, "--dryrun"],
    "unknown option --slurm.tim; did you mean --slurm.time?": ["submit", *FIT, "--slurm.tim", "3"],
    "--model: expected the name of a class, got Teachr; did you mean Teacher?": ["fit", "--model", "Teachr"],
    "--model.optimizer: expected the name of a class, got Adamm": [*FIT, "--model.optimizer", "Adamm"],
    "--trainer.callbacks: expected the name of a class, got callbacks.GradualUnfrezing; did you mean": [
        *FIT,
        "--trainer.callbacks+=callbacks.GradualUnfrezing",
    ],
    "expected --model.init_from too": ["fit", "-c", "conf/finetune/gd.yaml"],
    "expected --out too (Folder for the results)": ["evaluate", "--shower", "x"],
    "expected --model too (-c conf/teacher.yaml": ["fit"],
    "expected a value behind --data.files": [*FIT, "--data.files", "--quiet"],
    "expected an option, got 'conf/teacher.yaml'; did you mean -c conf/teacher.yaml?": ["fit", "conf/teacher.yaml"],
    "--data.batch_size: expected a whole number, got many": [*FIT, "--data.batch_size", "many"],
    "--data.sampling: expected natural or balanced or power, got even": [*FIT, "--data.sampling", "even"],
    "--data.fractions: expected tuple with 3 elements, got [1, 2]": [*FIT, "--data.fractions", "1", "2"],
    "--trainer.max_epochs: expected a whole number, got x": [*FIT, "--trainer.max_epochs", "x"],
    "--trainer.callbacks.rows: expected a whole number, got abc": [*FIT, "--trainer.callbacks.rows", "abc"],
    "--model.representation.hidden: expected a whole number, got x": [*FIT, "--model.representation.hidden", "x"],
    "--model.optimizer.lr: expected a number, got x": [*FIT, "--model.optimizer.lr", "x"],
    r"'runs/\udcff': expected a name in UTF-8": [*FIT, "--run", "runs/\udcff"],
    "--quiet: expected true or false, got perhaps": [*EVALUATE, "--quiet", "perhaps"],
    "--requantization: expected a whole number or best, got worst": [*EVALUATE, "--requantization", "worst"],
    "--shower: expected one, got 2: a, b": [*EVALUATE, "--shower", "a", "b"],
    "nowhere.yaml: no such file, neither here nor": ["fit", "-c", "nowhere.yaml"],
    "own.yaml: unknown setting data.batchsize; did you mean data.batch_size?": ["fit", "-c", "own.yaml"],
    "model.yaml: unknown setting model.hiden; did you mean model.hidden?": ["fit", "-c", "model.yaml"],
    "tool.yaml: unknown setting showr; did you mean shower?": [*EVALUATE, "-c", "tool.yaml"],
    "twice.yaml: expected YAML (out is there twice": ["evaluate", "-c", "twice.yaml"],
    "type.yaml: runs: expected a whole number, got many": [*EVALUATE, "-c", "type.yaml"],
    "empty.yaml: expected settings such as `trainer:`, got nothing": ["fit", "-c", "empty.yaml"],
    "text.yaml: expected settings such as `trainer:`, got str": [*EVALUATE, "-c", "text.yaml"],
    "open.yaml: expected YAML (": ["fit", "-c", "open.yaml"],
}
FILES = {
    "own": "model: Teacher\ndata:\n  batchsize: 3\n",
    "model": "model:\n  class_path: PhotonSum\n  init_args:\n    hiden: [8]\n",
    "tool": "showr: x\n",
    "twice": "out: a\nout: b\n",
    "type": "runs: many\n",
    "empty": "",
    "text": "hello\n",
    "open": "{",
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_no_parser_takes_is_refused_in_one_line(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    subcommand, *words = REFUSED[said]
    with pytest.raises(ValueError) as caught:
        submit(words) if subcommand == "submit" else check(subcommand, words)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("subcommand", [*TOOLS, "submit"])
def test_a_tools_refusal_costs_no_torch(subcommand):
    code = "import sys; from calosim.__main__ import main; print(main(sys.argv[1:]), *{m.split('.')[0] for m in sys.modules})"
    command = [sys.executable, "-c", code, subcommand, "--xyzzy", "3"]
    code, *loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert code == "2"
    assert not {"torch", "lightning", "matplotlib", "sklearn"} & set(loaded)


def test_other_messages_are_only_joined():
    assert one_line("a file: is\n  damaged ") == "a file: is damaged"


# -- what is taken -----------------------------------------------------------------------------------------------------


def test_several_values_are_a_list_and_patterns_are_what_they_match(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.root", "a.root", "[c].root"):
        (tmp_path / name).touch()
    for given, expected in {
        ("x",): ["x"],
        ("x", "y"): ["x", "y"],
        ("[x,y]",): ["x", "y"],
        ("?.root",): ["a.root", "b.root"],
        ("[?.root, x]",): ["a.root", "b.root", "x"],
        ("[*.root]",): ["[c].root", "a.root", "b.root"],
        ("[c].root",): ["[c].root"],
        ("none*",): ["none*"],
        ('["a, b", "c"]',): ["a, b", "c"],
    }.items():
        assert resolved("report", ["--runs", *given])["runs"] == expected
    convert = ["--out", "o.root", "--source"]
    assert resolved("convert", [*convert, "a.root"])["source"] == "a.root"
    assert resolved("convert", [*convert, "?.root", "--prefer", "310"])["source"] == ["a.root", "b.root"]
    assert resolved("convert", [*convert, "a", "--prefer", "310", "-211"])["prefer"] == [310, -211]
    assert resolved("evaluate", ["--out", "e", "--photons", "null"])["photons"] is None
    assert resolved("evaluate", ["--out", "e", "--photons", "a", "b"])["photons"] == ["a", "b"]
    assert trained([*FIT[1:], "--data.files", "?.root"])["data"]["files"] == ["a.root", "b.root"]
    assert trained(["--model", "PhotonSum", "--model.hidden", "8", "9"])["model"]["init_args"]["hidden"] == [8, 9]


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        (["--trainer.limit_train_batches", "1"], "limit_train_batches", "1"),
        (["--trainer.limit_train_batches", "1.0"], "limit_train_batches", "1.0"),
        (["--trainer.limit_val_batches=0.5"], "limit_val_batches", "0.5"),
        (["--trainer.overfit_batches", "2"], "overfit_batches", "2"),
        (["--trainer.gradient_clip_val", "1e1"], "gradient_clip_val", "10.0"),
        (["--trainer.devices", "auto"], "devices", "'auto'"),
        (["--trainer.max-epochs", "null"], "max_epochs", "None"),
    ],
)
def test_whole_numbers_stay_whole(words, place, value):
    assert repr(trained([*FIT[1:], *words])["trainer"][place]) == value


def test_old_names_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.yaml").write_text("shape: x\nnoise_removal: best\n")
    (tmp_path / "run.yaml").write_text(
        "model: {class_path: Teacher, init_args: {coordinates: {class_path: PixelConfig, init_args: {noise: 0.4}}}}\nrun: null\n"
    )
    given = resolved("evaluate", [*EVALUATE[1:], "-c", "old.yaml", "--noise_removal_of", "neutron=1"])
    assert (given["shower"], given["requantization"], given["requantization_of"]) == ("x", "best", ["neutron=1"])
    new = trained([*FIT[1:], "-c", "conf/representation/pixels.yaml", "--model.representation.noise", "0.3"])
    assert new == trained([*FIT[1:], "-c", "conf/coordinates/pixels.yaml", "--model.coordinates.noise=0.3"])
    old = trained(["--run", "r", "-c", "run.yaml", "--optimizer.lr", "0.1"])
    assert old["model"]["init_args"]["representation"]["noise"] == 0.4
    assert old["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.1
    assert old["run"] == "r"


def test_every_shipped_file_has_known_settings():
    root = shipped_config("base.yaml").parent
    files = [file for file in sorted(root.rglob("*.yaml")) if file.parent.name not in ("study", "common", "demo")]
    assert len(files) > 15
    for file in files:
        name = (read_yaml(file).get("model") or {}).get("class_path")
        # An overlay is of the model that its folder or its name says.
        inside = str(file.relative_to(root))
        of = "PhotonSum" if "photons" in inside else "Student" if "student" in inside else "Teacher"
        needs = ["--model.init_from", "x"] if name and "FineTune" in name else []
        needs = ["--model.init_from", "x"] if "Student" in (name or of) else needs
        parsed("fit", [*([] if name else ["--model", of]), "-c", str(file), *needs])
    for tool in ("simulate", "evaluate", "explain"):
        check(tool, ["-c", f"conf/demo/{tool}.yaml", "--out", "x", *(["--photons", "p"] if tool == "explain" else [])])
