"""What is there already is taken if it is what the plan wants, by settings and content, and refused in one line if not."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import yaml

from calosim.__main__ import main
from calosim.cli.tools import resolved
from calosim.data.root import read_recipe, write
from calosim.io import read_json, write_json
from calosim.models.checkpoints import weights_of
from calosim.runs import Run, difference, identity
from calosim.studies.plan import command_words, load_plan, simulated
from calosim.studies.run import is_finished, unknown_origin


@pytest.fixture
def begun(tmp_path, make_plan, root_file):
    """The only training of a plan, of a configuration file that can be changed."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {max_epochs: 2}\n")
    (tmp_path / "zn.root").write_bytes(root_file.read_bytes())
    training = {"config": ["conf/photons.yaml", str(overlay)]}
    make_plan(trainings={"base": training}, common={"data.files": [str(tmp_path / "zn.root")]})

    def load(**options):
        return load_plan(tmp_path / "plan.yaml", options=options).steps["base"]

    return load


def test_settings_that_change_no_weight_are_set_aside(begun, tmp_path, pretend):
    step = begun()
    assert not is_finished(step)
    pretend(step)
    assert is_finished(step)
    assert is_finished(begun(**{"trainer.enable_progress_bar": True, "data.cache_dir": str(tmp_path), "quiet": True}))
    # The same data in another place are the same data.
    (tmp_path / "zn.root").rename(tmp_path / "moved.root")
    assert is_finished(begun(**{"data.files": [str(tmp_path / "moved.root")]}))


def test_changed_options_and_files_are_noticed(begun, tmp_path, pretend):
    pretend(begun())
    with pytest.raises(ValueError, match=r"it has trainer\.max_epochs=2 instead of 3"):
        is_finished(begun(**{"trainer.max_epochs": 3}))
    (tmp_path / "overlay.yaml").write_text("trainer: {max_epochs: 4}\n")
    with pytest.raises(ValueError, match=r"it has trainer\.max_epochs=2 instead of 4"):
        is_finished(begun())


def test_changed_data_are_noticed(begun, tmp_path, pretend, showers):
    step = begun()
    pretend(step)
    write(tmp_path / "zn.root", dataclasses.replace(showers, images=showers.images + 1))
    with pytest.raises(ValueError, match=r"finished on other data than .*zn\.root"):
        is_finished(step)
    (tmp_path / "zn.root").unlink()  # then the plan makes them, or nothing needs them
    assert is_finished(step)


def test_a_real_run_is_recognized(begun):
    """What the command records is what it resolves to."""
    step = begun(**{"trainer.max_epochs": 1, "model.hidden": [4], "trainer.limit_train_batches": 1})
    assert main(["fit", *step.words, "--quiet"]) == 0
    assert not difference(identity(Run(step.folder).config), identity(step.settings))
    assert is_finished(step)


def test_data_tell_how_they_were_made(tmp_path, make_plan):
    data, floor = tmp_path / "a.root", tmp_path / "b.root"
    few = {"primaries": 9, "responses_per_primary": 2}

    def steps(**settings):
        simulate = {str(data): {**few, **settings}, str(floor): {"primaries": str(data), "responses_per_primary": 2}}
        return list(load_plan(make_plan(simulate=simulate)).steps.values())

    made = steps()
    for step in made:
        assert main(["simulate", *step.words, "--quiet"]) == 0
    assert all(map(is_finished, made))
    assert not any(map(unknown_origin, made))
    settings = {"detector": "zn", "seed": 1, "split": None, "match_sums": 0, "keep_dark": False, **few}
    assert read_recipe(data)["settings"] == settings
    with pytest.raises(
        ValueError, match=r"a\.root: made with other settings than the plan's \(it has seed=1 instead of 5\)"
    ):
        is_finished(steps(seed=5)[0])
    # Other primaries make another floor.
    assert main(["simulate", *steps(seed=5)[0].words, "--quiet"]) == 0
    with pytest.raises(ValueError, match=r"it has the primaries of another .*a\.root"):
        is_finished(made[1])
    # Data of another origin are taken, and that is said.
    floor.write_bytes(data.read_bytes())
    assert is_finished(made[1])
    assert "b.root: taken as it is" in unknown_origin(made[1])


def test_an_evaluation_of_other_settings_or_of_another_training_is_noticed(judged):
    plan = load_plan(judged)
    step = plan.steps["good-evaluation"]
    assert is_finished(step)
    record = read_json(step.result)
    write_json(step.result, {**record, "arguments": {**record["arguments"], "runs": 3}})
    with pytest.raises(ValueError, match="it has runs=3 instead of 2"):
        is_finished(step)
    write_json(step.result, {**record, "data": {**record["data"], "data_hash": "y"}})
    with pytest.raises(ValueError, match="it has data of hash y instead of x"):
        is_finished(step)


@pytest.mark.parametrize("photons", ["./x", "[./x]", ["./x"]])
def test_an_evaluations_options_are_compared_as_the_command_understands_them(photons, judged, tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = {"photons": photons, "runs": "2", "classifier": "false", "requantization_of": "[neutron=1]"}
    words = [*command_words(asked), "--out", "o", "--shower", "s"]
    step = load_plan(judged).steps["good-evaluation"]
    step = dataclasses.replace(step, options={**asked, "out": "o", "shower": "s"}, words=tuple(words))
    record, made = read_json(step.result), resolved("evaluate", words)
    assert (made["photons"], made["runs"], made["classifier"]) == (["./x"], 2, False)
    # Made by another spelling of the folder.
    write_json(step.result, {**record, "arguments": made | {"photons": [str(tmp_path / "x")]}})
    assert is_finished(step)
    write_json(step.result, {**record, "arguments": made | {"photons": [str(tmp_path)]}})
    with pytest.raises(ValueError, match="it has photons="):
        is_finished(step)


def test_an_evaluation_of_weights_that_changed_is_made_anew(judged, run_folders, tmp_path, train_on):
    step = load_plan(judged).steps["good-evaluation"]
    run = shutil.copytree(run_folders["photons"], tmp_path / "trained")
    write_json(step.result, read_json(step.result) | {"weights": weights_of([run], step.folder)})
    assert is_finished(step)
    train_on(run)
    assert not is_finished(step)


def test_a_particle_has_one_meaning_and_a_folder_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [identity({"data": {"particle": name}}) for name in ("lambda", "3122", 3122)]
    assert names == [{"data.particle": 3122}] * 3
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert not difference({"model.init_from": "a"}, {"model.init_from": str(tmp_path / "a")})
    assert difference({"model.init_from": "a"}, {"model.init_from": "b"})
    assert difference({"x": "gone"}, {"x": "./gone"})  # names of nothing are names


def test_data_are_compared_as_the_command_understands_them():
    assert simulated({"primaries": "20", "keep_dark": "true"}) == simulated({"primaries": 20, "keep_dark": True})
    assert simulated({"primaries": "20"})["seed"] == 1


def test_differences_are_few():
    assert difference({"a": 1, "b": 2}, {"a": 1, "b": None, "c": None}) == "b=2 instead of None"
    assert difference(dict.fromkeys("abcde", 1), {}).endswith("c=1 instead of None, and 2 more")
    assert yaml.safe_dump(identity({"data": {"files": ["x"], "seed": 1}, "run": "y"})) == "data.seed: 1\n"
