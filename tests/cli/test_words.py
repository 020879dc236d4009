"""Options are known without torch: the same names as the parsers', and a misspelled one is answered with the nearest."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from calosim.cli.words import MODELS, TOOLS, checked, tool_options, training_options

from calosim.__main__ import VERBS
from calosim.io import read_yaml, shipped_config

FIT = ["fit", "-c", "conf/teacher.yaml"]


def dotted(known, outer="") -> set[str]:
    """Names of options, those in groups too, as parsers have them."""
    return {f"{outer}{key}" for key in known} | {
        name for key, entry in known.items() if isinstance(entry, dict) for name in dotted(entry, f"{outer}{key}.")
    }


# -- what is read from the sources is what is there --------------------------------------------------------------------


def test_options_of_trainings_are_those_of_the_parser():
    from lightning import Trainer

    from calosim.cli.train import _fit_parser

    # Its help and its defaults are no settings; settings of classes are the parser's own business.
    real = {a.dest for a in _fit_parser()._parser("fit")._actions if not a.dest.endswith("help")} - {"print_config"}
    groups = {name.rpartition(".")[0] for name in real}
    assert real - {"best", "last"} - dotted(training_options("fit")) == set()
    assert dotted(training_options("fit")) - real - groups <= {"optimizer", "lr_scheduler"}
    for verb in ("validate", "test", "predict"):
        known = set(inspect.signature(getattr(Trainer, verb)).parameters)
        assert {"ckpt_path", "weights_only"} <= set(training_options(verb)) & known


@pytest.mark.parametrize("name", MODELS)
def test_options_of_models_are_their_arguments(name):
    from calosim.cli.signatures import options

    from calosim import models

    known, real = options("calosim.models", name), inspect.signature(getattr(models, name)).parameters
    assert list(known) == list(real)
    for option in known.values():
        assert option.required == (real[option.name].default is inspect.Parameter.empty)


def test_settings_are_their_fields():
    from calosim.cli.signatures import options

    from calosim.flows import FlowConfig
    from calosim.representations import PixelConfig, SplitConfig

    known = options("calosim.models", "Teacher")
    assert set(known["flow"].settings) == {f.name for f in fields(FlowConfig)}
    assert set(known["representation"].settings) == {
        f.name for kind in (PixelConfig, SplitConfig) for f in fields(kind)
    }
    assert known["optimizer"].settings is None  # any class
    assert known["physics"].settings == {}


@pytest.mark.parametrize("verb", TOOLS)
def test_options_of_tools_are_those_of_the_parser(verb, monkeypatch):
    from jsonargparse import ArgumentParser

    from calosim.cli import tools

    class Parsed(Exception):
        pass

    def parse(self, *_):
        raise Parsed({a.dest for a in self._actions if not a.dest.endswith("help")})

    monkeypatch.setattr(ArgumentParser, "parse_args", parse)
    with pytest.raises(Parsed) as caught:
        tools.run([verb])
    assert caught.value.args[0] - {"print_config"} == set(tool_options(verb))


# -- what is refused ---------------------------------------------------------------------------------------------------

EVALUATE, COMPARE = ["evaluate", "--out", "e"], ["compare", "--plan", "p"]
REFUSED = {
    "unknown option --data.batchsize; did you mean --data.batch_size?": [*FIT, "--data.batchsize", "3"],
    "unknown option --batch_size; did you mean --data.batch_size?": [*FIT, "--batch_size", "3"],
    "unknown option --model.flow.hiden; did you mean --model.flow.hidden?": [*FIT, "--model.flow.hiden=[8]"],
    "unknown option --model.hiden; did you mean --model.hidden?": [
        "fit",
        "--model",
        "PhotonSum",
        "--model.hiden",
        "[8]",
    ],
    "unknown option --trainer.maxepochs; did you mean --trainer.max_epochs?": [*FIT, "--trainer.maxepochs", "3"],
    "unknown option --xyzzy": [*FIT, "--xyzzy", "3"],
    "unknown option --shapee; did you mean --shape?": [*EVALUATE, "--shapee", "x"],
    "unknown option --dryrun; did you mean --dry_run?": [*COMPARE, "--dryrun"],
    "unknown model 'Teachr'; did you mean Teacher?": ["fit", "--model", "Teachr"],
    "FineTune needs --model.init_from (Run folder or checkpoint of": ["fit", "-c", "conf/finetune/gd.yaml"],
    "evaluate needs --out (Folder for the results)": ["evaluate", "--shower", "x"],
    "expected a model: -c conf/teacher.yaml": ["fit"],
    "expected one of Teacher, ": ["fit", "--model.help"],
    "expected a value behind --data.files": [*FIT, "--data.files", "--quiet"],
    "expected an option, got 'conf/teacher.yaml'; did you mean -c conf/teacher.yaml?": ["fit", "conf/teacher.yaml"],
    "--data.batch_size: expected a whole number, got 'many'": [*FIT, "--data.batch_size", "many"],
    "--data.sampling: expected natural, balanced or power, got 'even'": [*FIT, "--data.sampling", "even"],
    "--trainer.max_epochs: expected a whole number or null, got": [*FIT, "--trainer.max_epochs", "x"],
    "--quiet: expected true or false, got 'perhaps'": [*EVALUATE, "--quiet", "perhaps"],
    "--shape: expected one, got 2: a, b": [*EVALUATE, "--shower", "[a,b]"],
    "nowhere.yaml: no such file, neither here nor": ["fit", "-c", "nowhere.yaml"],
    "own.yaml: unknown setting data.batchsize; did you mean data.batch_size?": ["fit", "-c", "own.yaml"],
    "empty.yaml: expected settings such as `trainer:`, got nothing": ["fit", "-c", "empty.yaml"],
    "text.yaml: expected settings such as `trainer:`, got str": [*EVALUATE, "-c", "text.yaml"],
    "open.yaml: expected YAML (": ["fit", "-c", "open.yaml"],
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_no_parser_would_take_is_refused_in_one_line(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("model: Teacher\ndata:\n  batchsize: 3\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "text.yaml").write_text("hello\n")
    (tmp_path / "open.yaml").write_text("{")
    with pytest.raises(ValueError) as caught:
        checked(REFUSED[said])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_refusal_imports_nothing_slow():
    code = "import sys; from calosim.__main__ import main; print(main(sys.argv[1:]), *{m.split('.')[0] for m in sys.modules})"
    words = [*FIT, "--data.batchsize", "3"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    code, *loaded = done.stdout.split()
    assert code == "2"
    assert not {"torch", "lightning", "jsonargparse"} & set(loaded)
    assert done.stderr == "calosim: error: unknown option --data.batchsize; did you mean --data.batch_size?\n"


# -- what is taken -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [*FIT, "--trainer.max_epochs", "null", "--trainer.devices", "auto", "--trainer.strategy=ddp", "--quiet"],
        [*FIT, "--model.optimizer.lr", "3e-3", "--model.optimizer", "torch.optim.Adam", "--model.flow", "null"],
        [*FIT, "--model.representation.init_args.hidden", "8", "--model.representation.class_path", "SplitConfig"],
        [*FIT, "--trainer.callbacks+=callbacks.GradualUnfreezing", "--trainer.callbacks.order", "GD"],
        [*FIT, "--trainer.gradient_clip_val", "1e1", "--data.particle", "-211", "--seed_everything", "true"],
        ["fit", "--model", "own.module.Model", "--model.anything", "3"],
        ["fit", "--help"],
        ["fit", "--model.help", "Teacher"],
        ["test", "-c", "conf/photons.yaml", "--ckpt_path", "best", "--verbose", "false"],
        [*EVALUATE, "--requantization", "best", "--classifier", "--rows", "null"],
        ["simulate", "--primaries", "a.root", "--seed=-1"],
    ],
)
def test_what_parsers_take_is_left_to_them(words):
    assert checked(words) == [part for word in words for part in ([word] if words[1] == "--help" else _split(word))]


def _split(word: str) -> list[str]:
    return list(word.partition("=")[::2]) if word.startswith("--") and "=" in word else [word]


def test_every_shipped_file_has_known_settings():
    root = shipped_config("base.yaml").parent
    files = [file for file in sorted(root.rglob("*.yaml")) if file.parent.name not in ("study", "common", "demo")]
    assert len(files) > 15
    for file in files:
        name = (read_yaml(file).get("model") or {}).get("class_path")
        # An overlay is of the model that its folder or its name says.
        of = (
            "PhotonSum"
            if "photons" in str(file)
            else "Student"
            if "student" in str(file.relative_to(root))
            else "Teacher"
        )
        needs = ["--model.init_from", "x"] if name and "FineTune" in name else []
        checked(["fit", "-c", str(file), *([] if name else ["--model", of]), *needs])
    for tool in ("simulate", "evaluate", "explain"):
        checked(
            [tool, "-c", f"conf/demo/{tool}.yaml", "--out", "x", *(["--photons", "p"] if tool == "explain" else [])]
        )


def test_commands_of_the_readme_have_known_options():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"(?m)root …$", "root --out …", text)  # and so on
    commands = re.findall(r"^calosim (\w.*)$", text, re.MULTILINE)
    found = [shlex.split(line.split("  #")[0], comments=True) for line in commands if line.split()[0] in VERBS]
    assert len(found) > 12
    for words in found:
        if "runs/teacher/wide/config.yaml" in words:
            continue  # which a reader has by then
        init = ["--model.init_from", "x"] if any("conf/finetune" in word for word in words) else []
        checked([*words, *init])


def test_several_values_are_a_list_and_patterns_are_what_they_match(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.root", "a.root", "[c].root"):
        (tmp_path / name).touch()
    report, convert = ["report", "--runs"], ["convert", "--out", "o.root", "--source"]
    for given, expected in {
        ("x",): '["x"]',
        ("x", "y"): '["x", "y"]',
        ("[x,y]",): '["x", "y"]',
        ("?.root",): '["a.root", "b.root"]',
        ("[?.root, x]",): '["a.root", "b.root", "x"]',
        ("[*.root]",): '["[c].root", "a.root", "b.root"]',
        ("[c].root",): '["[c].root"]',
        ("none*",): '["none*"]',
    }.items():
        assert checked([*report, *given])[2] == expected
    assert checked([*convert, "a.root"])[-1] == "a.root"
    assert checked([*convert, "?.root"])[-1] == '["a.root", "b.root"]'
    assert checked([*FIT, "--data.files", "a.root", "b.root"])[-1] == '["a.root", "b.root"]'
    assert checked(["fit", "--model", "PhotonSum", "--model.hidden", "8", "9"])[-1] == "[8, 9]"
    assert checked(["convert", "--source", "a", "--out", "[o.root]", "--prefer", "310"])[-3:] == [
        "o.root",
        "--prefer",
        "[310]",
    ]
    assert checked([*EVALUATE, "--photons", "null"])[-1] == "null"
