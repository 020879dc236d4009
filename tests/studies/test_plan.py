"""Included files: merged, overridden, and refused where they cannot be."""

from __future__ import annotations

import re

import pytest

from calosim.cli import train
from calosim.studies import plan as plans
from calosim.studies.plan import load_plan, read_entries


def test_the_including_file_wins_and_mappings_are_merged(tmp_path):
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "a.yaml").write_text("common: {x: 1, y: [1, 2]}\nevaluate: {runs: 5, floor: f}\n")
    (tmp_path / "common" / "b.yaml").write_text("include: [c.yaml]\ncommon: {x: 2}\n")
    (tmp_path / "common" / "c.yaml").write_text("simulate: {z: {seed: 1}}\n")
    plan = tmp_path / "plan.yaml"
    plan.write_text("include: [common/a.yaml, common/b.yaml]\ncommon: {y: [3]}\nevaluate: {floor: null, rows: 4}\n")
    assert read_entries(plan) == {
        "common": {"x": 2, "y": [3]},
        "evaluate": {"runs": 5, "floor": None, "rows": 4},
        "simulate": {"z": {"seed": 1}},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: [plan.yaml]", r"plan\.yaml: includes itself, by way of \S+plan\.yaml$"),
        ("include: [other.yaml]", r"plan\.yaml: includes itself, by way of \S+plan\.yaml and \S+other\.yaml$"),
        (
            "include: [missing.yaml]",
            r"missing\.yaml: cannot be read \(No such file or directory\) \(included by \S+plan\.yaml\)",
        ),
        ("include: other.yaml", "expected `include` to be a list of files, got 'other.yaml'"),
        ("[1, 2]", "expected entries such as `trainings:`, got list"),
        ("{", "expected YAML"),
    ],
)
def test_a_bad_include_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("include: [plan.yaml]")
    with pytest.raises(ValueError, match=message) as error:
        read_entries(tmp_path / "plan.yaml")
    assert "\n" not in str(error.value)


def test_the_same_file_may_be_included_twice_in_different_ways(tmp_path):
    """A diamond is no cycle."""
    for name, text in {"a": "include: [c.yaml]", "b": "include: [c.yaml]", "c": "x: 1"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "plan.yaml").write_text("include: [a.yaml, b.yaml]")
    assert read_entries(tmp_path / "plan.yaml") == {"x": 1}


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
    monkeypatch.setattr(plans, "_READ", {})
    monkeypatch.setattr(train, "resolved", lambda words: read.append(words) or ask(words))
    variants = [GD, [*GD[:-1], "2"], [*GD[:3], "runs/b", *GD[4:5], "lambda", *GD[6:]], OTHER, [*GD[:-1], "true"]]
    found = [plans.resolved(words) for words in variants]
    # A code is another kind of value than a name, and `true` is no seed as it is written.
    assert [read.index(words) for words in read] == [0, 1, 2]
    assert found == [ask(words) for words in variants]
    # What one caller does to its settings is none of another's business.
    found[0]["data"]["particle"] = "muon"
    assert plans.resolved(GD)["data"]["particle"] == "gamma"


def test_what_the_command_refuses_is_refused(monkeypatch):
    plans.resolved(GD)
    with pytest.raises(ValueError, match="seed_everything"):
        plans.resolved([*GD[:-1], "many"])


def test_a_changed_configuration_file_is_read_again(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    for epochs in (2, 3):
        overlay.write_text(f"trainer: {{max_epochs: {epochs}}}\n")
        found = plans.resolved(["-c", "conf/photons.yaml", "-c", str(overlay)])
        assert found["trainer"]["max_epochs"] == epochs


def test_names_stand_for_values_and_run_folders(tmp_path, make_plan):
    trainings = {
        "base": {"config": ["a.yaml"], "options": {"trainer.max_epochs": 2}},
        "gd": {
            "each": {"particle": ["gamma", "lambda"], "seed": [1, 2]},
            "config": ["b.yaml"],
            "options": {"model.init_from": "{base}", "data.particle": "{particle}", "seed_everything": "{seed}"},
        },
        "again": {
            "each": {"particle": ["lambda"], "seed": [2]},
            "options": {"model.init_from": "{gd}"},
            "evaluate": False,
        },
    }
    judge = {"runs": 2, "photons": ["{base}"]}
    plan = load_plan(make_plan(trainings=trainings, common={"data.files": ["x.root"]}, evaluate=judge))
    assert plan.trainings == {
        "base": ["base"],
        "gd": ["gd-gamma-1", "gd-gamma-2", "gd-lambda-1", "gd-lambda-2"],
        "again": ["again-lambda-2"],
    }
    step = plan.steps["gd-lambda-2"]
    assert step.after == ("base",)
    assert step.configs == ("b.yaml",)
    assert step.options["seed_everything"] == 2
    words = " ".join(step.words)
    assert words.startswith('-c b.yaml --data.files ["x.root"] --model.init_from ')
    assert f"--model.init_from {tmp_path}/out/base --data.particle lambda --seed_everything 2" in words
    assert plan.steps["again-lambda-2"].options["model.init_from"] == f"{tmp_path}/out/gd-lambda-2"
    assert plan.steps["again-lambda-2"].after == ("gd-lambda-2",)
    judged = plan.steps["gd-gamma-1-evaluation"]
    assert set(judged.after) == {"gd-gamma-1", "base"}
    assert judged.options["photons"] == [f"{tmp_path}/out/base"]
    assert "again-lambda-2-evaluation" not in plan.steps
    # Further options win over the plan's.
    again = load_plan(tmp_path / "plan.yaml", options={"trainer.max_epochs": 1})
    assert again.steps["base"].options["trainer.max_epochs"] == 1


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"training": {}}, "unknown entries training"),
        ({"trainings": {"a": {"option": {}}}}, "training a has unknown entries option"),
        ({"trainings": {"a": {"options": {"x": "{nobody}"}}}}, r"cannot resolve '\{nobody\}'"),
        ({"trainings": None}, "expected a plan with `trainings`"),
    ],
)
def test_a_bad_plan_is_refused(make_plan, entries, message):
    with pytest.raises(ValueError, match=message):
        load_plan(make_plan(**entries))


#: Trainings, entries beside them, and what is said: of two of a name, one would vanish.
TWO_OF_A_NAME = {
    "value": ({"a": {"each": {"s": [1]}}, "a-1": {}}, {}, "'a-1' and fit 'a-1' would have one name"),
    "same text": ({"a": {"each": {"s": [1, "1"]}, "options": {"seed_everything": "{s}"}}}, {}, "one name"),
    "log": ({"a": {"each": {"s": ["b/c", "b_c"]}, "options": {"x": "{s}"}}}, {}, "one name"),
    "inside": ({"a": {"each": {"s": ["b", "b/c"]}, "options": {"x": "{s}"}}}, {}, "one name or place"),
    "around": ({"a": {"each": {"s": ["b/c", "b"]}, "options": {"x": "{s}"}}}, {}, "one name or place"),
    "evaluation": ({"a": {}, "a-evaluation": {}}, {"evaluate": {}}, "one name"),
    "file": ({}, {"simulate": {"d/x.root": {}, "d/../d/x.root": {}}}, "one name or place"),
    "taken": ({"ensemble": {}}, {}, "training ensemble: expected another name"),
    "floor": ({"floor": {}}, {}, "training floor: expected another name"),
    "folder": ({"a/checkpoints": {}}, {}, "training a/checkpoints: expected another name"),
    "title": ({"a": {"title": "b"}, "b": {}}, {}, "trainings a and b are both 'b' in the tables"),
    "row": (
        {"a": {"each": {"x": ["b"], "s": [1, 2]}, "options": {"seed_everything": "{s}"}}, "a-b": {}},
        {},
        "trainings a and a-b are both 'a-b'",
    ),
    "unused": ({"a": {"each": {"s": [1, 2]}}}, {}, "a-1 and a-2 are the same training"),
    "number": ({"a": {"each": {"s": [1, 1.0]}, "options": {"x": "{s}"}}}, {}, "a-1 and a-1.0 are the same training"),
    "particle": (
        {"a": {"each": {"p": ["lambda", 3122]}, "options": {"data.particle": "{p}"}}},
        {},
        "a-lambda and a-3122 are the same training",
    ),
}


@pytest.mark.parametrize(("trainings", "entries", "said"), TWO_OF_A_NAME.values(), ids=TWO_OF_A_NAME)
def test_two_of_a_name_are_refused(trainings, entries, said, make_plan):
    with pytest.raises(ValueError, match=re.escape(said)):
        load_plan(make_plan(trainings=trainings, **entries))


def test_a_name_that_stands_twice_in_a_file_is_refused(make_plan):
    path = make_plan(trainings={"a": {}})
    path.write_text(path.read_text().replace("  a: {}", "  a: {title: x}\n  a: {title: y}"))
    with pytest.raises(ValueError, match=r"plan.yaml: expected YAML \(a is there twice, again in line"):
        load_plan(path)


def test_what_is_the_same_is_shared(tmp_path, make_plan):
    """By settings and recipe of the data, whatever the plan calls it; what starts from it finds it."""
    data = str(tmp_path / "zn.root")
    base = {"config": ["conf/teacher.yaml"], "options": {"trainer.max_epochs": 2}, "shared": True}
    tuned = {"config": ["conf/finetune/gd.yaml"], "options": {"model.init_from": "{base}"}}
    entries = {"common": {"data.files": [data], "trainer.enable_progress_bar": False}, "evaluate": {}}
    entries["simulate"] = {data: {"primaries": 9, "seed": 1}}

    def shared_folder(name, out="out", trainings=None, **changed):
        plan = load_plan(make_plan(name, **{**entries, **changed}, trainings=trainings or {"x": base}), tmp_path / out)
        return plan, plan.steps[next(iter(plan.trainings))].folder

    first, folder = shared_folder("first", "out", {"base": base, "gd": tuned})
    assert folder.parent == tmp_path / "shared"
    assert folder.name.startswith("teacher-")
    assert first.steps["gd"].options["model.init_from"] == str(folder)
    assert first.steps["gd"].after == (data, "base")
    # Evaluations differ between plans: each keeps its own.
    assert first.steps["base-evaluation"].folder == tmp_path / "out" / "base" / "evaluation"
    assert first.steps["base-evaluation"].options["shape"] == str(folder)
    # Where and with what bar it is trained makes no difference; settings and data do.
    assert shared_folder("second", "elsewhere/out", common={"data.files": [data]})[1].name == folder.name
    assert shared_folder("third", simulate={data: {"primaries": 9, "seed": 2}})[1] != folder
    assert shared_folder("fourth", trainings={"x": {**base, "options": {"trainer.max_epochs": 3}}})[1] != folder
    assert shared_folder("fifth", shared=str(tmp_path / "here"))[1].parent == tmp_path / "here"
    with pytest.raises(ValueError, match="training gd is shared, but needs base, which is not"):
        shared_folder("sixth", trainings={"base": {**base, "shared": False}, "gd": {**tuned, "shared": True}})
