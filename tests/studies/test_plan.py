"""Plans: what is included and used, names that stand for values and folders, and one-line refusals of what is wrong."""

from __future__ import annotations

import re

import pytest

from calosim.studies.plan import Study, read_entries


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


def test_what_the_command_refuses_is_refused(make_plan):
    step = Study(
        make_plan(trainings={"a": {"config": ["conf/photons.yaml"], "options": {"seed_everything": "many"}}})
    ).steps["a"]
    with pytest.raises(ValueError, match=r"training a: .*seed_everything"):
        step.settings  # noqa: B018


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
    evaluate = {"runs": 2, "photons": ["{base}"]}
    plan = Study(make_plan(trainings=trainings, common={"data.files": ["x.root"]}, evaluate=evaluate))
    assert {label: [step.name for step in steps] for label, steps in plan.runs.items()} == {
        "base": ["base"],
        "gd": ["gd-gamma-1", "gd-gamma-2", "gd-lambda-1", "gd-lambda-2"],
        "again": ["again-lambda-2"],
    }
    step = plan.steps["gd-lambda-2"]
    assert step.after == ("base",)
    assert step.options["seed_everything"] == 2
    words = " ".join(step.words)
    assert words.startswith('-c b.yaml --data.files ["x.root"] --model.init_from ')
    assert f"--model.init_from {tmp_path}/out/base --data.particle lambda --seed_everything 2" in words
    assert plan.steps["again-lambda-2"].options["model.init_from"] == f"{tmp_path}/out/gd-lambda-2"
    assert plan.steps["again-lambda-2"].after == ("gd-lambda-2",)
    evaluated = plan.steps["gd-gamma-1-evaluation"]
    assert set(evaluated.after) == {"gd-gamma-1", "base"}
    assert evaluated.options["photons"] == [f"{tmp_path}/out/base"]
    assert "again-lambda-2-evaluation" not in plan.steps
    # Further options win over the plan's.
    again = Study(tmp_path / "plan.yaml", options={"trainer.max_epochs": 1})
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
        Study(make_plan(**entries))


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
        Study(make_plan(trainings=trainings, **entries))


def test_a_name_that_stands_twice_in_a_file_is_refused(make_plan):
    path = make_plan(trainings={"a": {}})
    path.write_text(path.read_text().replace("  a: {}", "  a: {title: x}\n  a: {title: y}"))
    with pytest.raises(ValueError, match=r"plan.yaml: expected YAML \(a is there twice, again in line"):
        Study(path)


@pytest.fixture
def baselines(tmp_path, make_plan):
    """A plan of two trainings of each kind, for others to use."""
    data = str(tmp_path / "zn.root")
    base = {"config": ["conf/teacher.yaml"], "each": {"seed": [1, 2]}, "options": {"seed_everything": "{seed}"}}
    tuned = {"config": ["conf/finetune/gd.yaml"], "options": {"model.init_from": "{base}", "seed_everything": 3}}
    entries = {"simulate": {data: {"primaries": 9, "seed": 1}}, "common": {"data.files": [data]}}
    return {**entries, "trainings": {"base": base, "tuned": {**tuned, "each": {"seed": [1]}}}}


def test_trainings_of_another_plan_are_used_where_they_are(tmp_path, make_plan, baselines):
    make_plan("baseline", **baselines, out=str(tmp_path / "baseline"), evaluate={"runs": 9})
    each = {"each": {"seed": [1, 2]}}
    trainings = {
        "first": {"use": "base-{seed}", "title": "baseline", **each},
        "again": {"config": ["conf/student.yaml"], "options": {"model.init_from": "{first}"}, **each},
    }
    entries = {**baselines, "uses": ["baseline.yaml"], "trainings": trainings, "evaluate": {"runs": 2}}
    study = Study(make_plan("other", **entries), options={"trainer.max_epochs": 1})
    step, data = study.steps["first-2"], str(tmp_path / "zn.root")
    assert step.folder == tmp_path / "baseline" / "base-2"
    assert (step.beside("lock"), step.after) == (tmp_path / "baseline" / "logs" / "base-2.lock", (data,))
    assert "trainer.max_epochs" not in step.options
    assert (step.label, study.row(step)) == ("first", ("first", "baseline"))
    # What starts from it finds it; evaluations are each study's own.
    assert study.steps["again-2"].options["model.init_from"] == str(step.folder)
    assert study.steps["again-2"].after == (data, "first-2")
    evaluation = study.steps["first-2-evaluation"]
    assert evaluation.folder == tmp_path / "out" / "first-2" / "evaluation"
    assert (evaluation.options["shower"], evaluation.options["runs"]) == (str(step.folder), 2)
    # What a used training needs is made too, and is no row.
    study = Study(make_plan("third", uses=["baseline.yaml"], trainings={"fine": {"use": "tuned-1"}}))
    assert study.steps["fine"].after == (data, "base-1")
    assert study.steps["base-1"].after == (data,)
    assert set(study.runs) == {"fine"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"trainings": {"a": {"use": "nobody"}}}, r"use: nobody: expected a training of \S+baseline\.yaml"),
        (
            {"trainings": {"a": {"use": "b"}}, "uses": []},
            "use: b: expected a training of a plan, of which `uses` names none",
        ),
        ({"trainings": {"a": {"use": "base-1", "config": []}}}, "training a: expected either `use` or"),
        ({"trainings": {"a": {"use": "base-{seed}"}}}, r"cannot resolve 'base-\{seed\}'"),
        (
            {"trainings": {"a": {"use": "base-1"}, "b": {"use": "base-1"}}},
            "fit 'a' and fit 'b' would have one name or place",
        ),
        ({"uses": ["plan.yaml"]}, r"plan\.yaml: uses itself"),
        ({"trainings": {"a": {"shared": True}}}, r"`shared` is no entry any more; .* `uses: \[FILE\]`.* `use: NAME`"),
        ({"shared": "runs/shared"}, "`shared` is no entry any more"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, make_plan, baselines, entries, message):
    make_plan("baseline", **baselines, out=str(tmp_path / "baseline"))
    with pytest.raises(ValueError, match=message) as error:
        Study(make_plan(**{"uses": ["baseline.yaml"], **entries}))
    assert "\n" not in str(error.value)


def test_used_data_are_those_of_the_plan(make_plan, baselines, tmp_path):
    make_plan("baseline", **baselines, out=str(tmp_path / "baseline"))
    (data,) = baselines["simulate"]
    other = {"simulate": {data: {"primaries": 9, "seed": 2}}, "uses": ["baseline.yaml"]}
    with pytest.raises(ValueError, match=r"simulate .*zn\.root' and simulate .*zn\.root' would have one name or place"):
        Study(make_plan(**other, trainings={"a": {"use": "base-1"}}))


def test_values_of_each_are_replaced(make_plan):
    sweep = {
        "each": {"n": [1, 2], "seed": [1, 2]},
        "options": {"trainer.max_epochs": "{n}", "seed_everything": "{seed}"},
    }
    path = make_plan(trainings={"sweep": sweep, "one": {}})
    assert list(Study(path, each={"n": [7]}).steps) == ["sweep-7-1", "sweep-7-2", "one"]
    with pytest.raises(ValueError, match="each: no training has m; expected n, seed"):
        Study(path, each={"m": [7]})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"metric": []}, "unknown entries metric of table"),
        ({"reference": "x"}, "names x"),
        ({"metrics": ["x"]}, "unknown metric 'x'"),
        ({"ensemble": {"default": "a"}}, "expected table.ensemble with default, members"),
        ({"ensemble": {"default": "a", "members": ["y"]}}, "names y"),
        ({"ensemble": {"default": "a", "members": ["a"]}}, "table.ensemble: expected each once, got a twice"),
        ({"metrics": ["ws", "ws"]}, "table.metrics: expected each once, got ws twice"),
        ({"modes": ["shape", "shape"]}, "table.modes: expected each once"),
        ({"particles": ["lambda", 3122]}, "table.particles: expected each once, got lambda twice"),
    ],
)
def test_a_bad_table_is_refused(make_plan, table, message):
    with pytest.raises(ValueError, match=message):
        assert Study(make_plan(trainings={"a": {}}, table=table)).table


def test_columns_have_one_name_each(make_plan):
    table = Study(make_plan(table={"particles": ["all", "sigma_plus", 3122]})).table
    assert table.columns == {"all": "all", "sigma+": "Σ⁺", "lambda": "Λ"}
