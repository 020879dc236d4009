"""What is there already is taken if it is what the plan wants, by settings and content, and refused in one line if not."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from calosim.__main__ import main
from calosim.cli.tools import resolved
from calosim.data.cache import read_recipe
from calosim.data.reading import read
from calosim.data.root import write
from calosim.io import read_json, write_json
from calosim.models.checkpoints import weights_of
from calosim.runs import Run, difference, identity
from calosim.slurm import Slurm
from calosim.studies import run as runs
from calosim.studies.plan import Study, command_words
from calosim.studies.run import (
    Execution,
    command,
    hold,
    is_finished,
    last_line,
    print_steps,
    run_steps,
    simulated,
    unknown_origin,
)


@pytest.fixture
def begun(tmp_path, make_plan, root_file):
    """The only training of a plan, of a configuration file that can be changed."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {max_epochs: 2}\n")
    (tmp_path / "zn.root").write_bytes(root_file.read_bytes())
    training = {"config": ["conf/photons.yaml", str(overlay)]}
    make_plan(trainings={"base": training}, common={"data.files": [str(tmp_path / "zn.root")]})

    def load(**options):
        return Study(tmp_path / "plan.yaml", options=options).steps["base"]

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
        return list(Study(make_plan(simulate=simulate)).steps.values())

    made = steps()
    for step in made:
        assert main(["simulate", *step.words, "--quiet"]) == 0
    assert all(map(is_finished, made))
    assert not any(map(unknown_origin, made))
    settings = {"detector": "zn", "seed": 1, "split": None, "match_sums": 0, "keep_empty": False, **few}
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
    write(floor, read(data))
    assert is_finished(made[1])
    assert "b.root: taken as it is" in unknown_origin(made[1])


def test_an_evaluation_of_other_settings_or_of_another_training_is_noticed(evaluated):
    plan = Study(evaluated)
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
def test_an_evaluations_options_are_compared_as_the_command_understands_them(photons, evaluated, tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = {"photons": photons, "runs": "2", "classifier": "false", "requantization_of": "[neutron=1]"}
    words = [*command_words(asked), "--out", "o", "--shower", "s"]
    step = Study(evaluated).steps["good-evaluation"]
    step = dataclasses.replace(step, options={**asked, "out": "o", "shower": "s"}, words=tuple(words))
    record, made = read_json(step.result), resolved("evaluate", words)
    assert (made["photons"], made["runs"], made["classifier"]) == (["./x"], 2, False)
    # Made by another spelling of the folder.
    write_json(step.result, {**record, "arguments": made | {"photons": [str(tmp_path / "x")]}})
    assert is_finished(step)
    write_json(step.result, {**record, "arguments": made | {"photons": [str(tmp_path)]}})
    with pytest.raises(ValueError, match="it has photons="):
        is_finished(step)


def test_an_evaluation_of_weights_that_changed_is_made_anew(evaluated, run_folders, tmp_path, train_on):
    step = Study(evaluated).steps["good-evaluation"]
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
    assert simulated({"primaries": "20", "keep_empty": "true"}) == simulated({"primaries": 20, "keep_empty": True})
    assert simulated({"primaries": "20"})["seed"] == 1


def test_differences_are_few():
    assert difference({"a": 1, "b": 2}, {"a": 1, "b": None, "c": None}) == "b=2 instead of None"
    assert difference(dict.fromkeys("abcde", 1), {}).endswith("c=1 instead of None, and 2 more")
    assert yaml.safe_dump(identity({"data": {"files": ["x"], "seed": 1}, "run": "y"})) == "data.seed: 1\n"


@pytest.fixture
def step(make_plan):
    return Study(make_plan(trainings={"base": {"config": ["conf/photons.yaml"]}})).steps["base"]


def test_a_begun_training_goes_on_from_its_newest_checkpoint(step, pretend):
    words = ["fit", *step.words]
    assert command(step) == words
    pretend(step, finished=False)
    run = Run(step.folder)
    run.last.parent.mkdir()
    for path, moment, name in ((run.last, 10, "last"), (run.next_hpc(), 20, "hpc"), (run.last, 30, "last")):
        path.touch()
        os.utime(path, (moment, moment))
        assert command(step) == [*words, "--ckpt_path", name]


def test_what_cannot_be_gone_on_with_is_removed(step, pretend):
    pretend(step, finished=False)
    held = Run(step.folder).claim()
    with pytest.raises(ValueError, match="another process trains there now"):
        command(step)
    Run(step.folder).release(held)
    assert command(step) == ["fit", *step.words]
    assert not step.folder.exists()


def test_what_has_not_said_what_it_is_begins_anew(step, pretend):
    """Killed while it wrote the first of its files, or while these were cleared away."""
    words, run = ["fit", *step.words], Run(step.folder)
    (run / ".abc.calosim-part").mkdir(parents=True)
    (run / "hparams.yaml").touch()
    assert command(step) == words
    (run / ".abc.calosim-part").rmdir()
    (run / "hparams.yaml").unlink()
    run.folder.rmdir()
    pretend(step, finished=False)
    for name in (Run.CONFIG, Run.RECORD):
        text = (run / name).read_text()
        (run / name).unlink()
        assert command(step) == words
        assert run.folder.exists()
        (run / name).write_text(text)


def test_checkpoints_of_no_run_are_not_trained_over(step):
    run = Run(step.folder)
    run.last.parent.mkdir(parents=True)
    run.last.touch()
    with pytest.raises(
        ValueError, match=r"expected the training of the plan or nothing, found a folder without run\.json"
    ):
        command(step)


def test_the_last_line_of_a_log_is_the_commands_own(step, tmp_path):
    log = step.beside("log")
    assert last_line(log) == ""
    log.write_text("epoch 1\ncalosim: error: no\n\nsrun: error: node1: task 0: Exited with exit code 2\n")
    assert last_line(log) == "calosim: error: no"


BASE = {"config": ["conf/photons.yaml"], "evaluate": False}
CHILD = {**BASE, "options": {"data.cache_dir": "{base}"}}


class Cluster:
    """A queue that does nothing: what was submitted, and the states of jobs by number."""

    def __init__(self):
        self.submitted, self.states = [], {}

    def submit(self, settings, words, requeue=False):
        self.submitted.append((settings, words[0], requeue))
        job = str(len(self.submitted))
        self.states[job] = "PENDING"
        return job, Path(f"{settings.folder}/{job}.sh")


@pytest.fixture
def cluster(monkeypatch):
    cluster = Cluster()
    monkeypatch.setattr(Slurm, "submit", lambda self, *words, **how: cluster.submit(self, *words, **how))
    monkeypatch.setattr(runs, "_states", lambda: dict(cluster.states))
    monkeypatch.setattr("shutil.which", lambda name: name)
    return cluster


def test_steps_wait_for_those_they_need_and_are_submitted_once(cluster, make_plan, pretend, capsys):
    plan = Study(make_plan(trainings={"base": {**BASE, "evaluate": {}}, "child": CHILD}, evaluate={"runs": 1}))
    asked = Slurm(gpus=2, more=["qos=long"])
    for _ in range(2):
        assert run_steps(plan.steps, Execution("slurm", slurm=asked)) is None
    fits, judging = cluster.submitted[:2], cluster.submitted[2]
    assert [subcommand for _, subcommand, _ in cluster.submitted] == ["fit", "fit", "evaluate"]
    assert all(settings.devices == 2 and requeue for settings, _, requeue in fits)
    assert (judging[0].devices, judging[2]) == (1, False)
    assert fits[0][0].more == ["qos=long", "job-name=base", "kill-on-invalid-dep=yes"]
    assert fits[1][0].more[-1] == judging[0].more[-1] == "dependency=afterok:1"
    cluster.states["1"] = "RUNNING"
    capsys.readouterr()
    assert run_steps(plan.steps, Execution("slurm", slurm=asked)) is None
    assert capsys.readouterr().out.splitlines()[::3] == ["base             running  job 1", "1 running, 2 queued"]
    # Here nothing is run that is in the queue.
    assert "is job 1 of Slurm, which is RUNNING" in run_steps(plan.steps, quiet=True)["base"]
    pretend(plan.steps["base"])
    pretend(plan.steps["child"])
    cluster.states.clear()
    assert set(run_steps(plan.steps, Execution("slurm", slurm=asked))) == {"base-evaluation"}


def test_what_failed_is_told_and_submitted_again_on_request(cluster, make_plan):
    plan = Study(make_plan(trainings={"base": BASE, "child": CHILD, "other": BASE}))
    assert run_steps(plan.steps, Execution("slurm", slurm=Slurm())) is None
    (plan.out / "logs" / "1-1.out").write_text(
        "calosim: error: no\nsrun: error: node: task 0: Exited with exit code 2\n"
    )
    del cluster.states["1"]
    with pytest.raises(ValueError, match="2 of 3 steps failed: base, child; 1 still in the queue"):
        run_steps(plan.steps, Execution("slurm", slurm=Slurm()))
    cluster.states.clear()
    failed = run_steps(plan.steps, Execution("slurm", slurm=Slurm()), quiet=True)
    assert failed["base"].startswith("job 1: calosim: error: no (see ")
    assert failed["child"] == "needs base, which failed"
    assert "left no log" in failed["other"]
    assert run_steps(plan.steps, Execution("slurm", slurm=Slurm(), retry=True)) is None
    assert len(cluster.submitted) == 6
    assert cluster.submitted[4][0].more[-1] == "dependency=afterok:4"


def test_a_used_training_is_one_job_of_two_studies(cluster, tmp_path, make_plan):
    baseline = Study(make_plan("baseline", out=str(tmp_path / "baseline"), trainings={"base": BASE}))
    trainings = {"base": {"use": "base", "evaluate": False}, "child": CHILD}
    for name in ("one", "other"):
        plan = Study(make_plan(name, out=str(tmp_path / name), uses=["baseline.yaml"], trainings=trainings))
        assert run_steps(plan.steps, Execution("slurm")) is None
    assert [settings.more[-1] for settings, *_ in cluster.submitted[1:]] == ["dependency=afterok:1"] * 2
    assert "is job 1 of Slurm" in run_steps(baseline.steps, quiet=True)["base"]


#: A study in a process of its own.
STUDY = """
import sys
from calosim.studies.plan import Study
from calosim.studies.run import run_steps
run_steps(Study(sys.argv[1]).steps, quiet=True)
"""


def test_failures_are_shown_and_the_rest_goes_on(tmp_path, make_plan):
    few = {"primaries": 5, "responses_per_primary": 2, "quiet": True}
    good, bad, later = (str(tmp_path / f"{name}.root") for name in ("good", "bad", "later"))
    simulate = {good: few, bad: {**few, "detector": "nowhere"}, later: few}
    plan = Study(make_plan(simulate=simulate))
    failed = run_steps(plan.steps, quiet=True)
    assert len(read(good))
    # `later` was to come after `bad`.
    assert set(failed) == {bad, later}
    assert "nowhere" in failed[bad]
    assert "\n" not in failed[bad]
    assert failed[later] == f"needs {bad}, which failed"
    before = Path(good).stat().st_mtime_ns
    assert set(run_steps(plan.steps, quiet=True)) == {bad, later}
    assert Path(good).stat().st_mtime_ns == before


@pytest.mark.parametrize("made", ["something else", "other settings"])
def test_a_folder_that_is_not_the_plans_is_left_alone(made, make_plan, pretend):
    plan = Study(make_plan(trainings={"base": {"config": ["conf/photons.yaml"]}}))
    step = plan.steps["base"]
    if made == "other settings":
        pretend(step, finished=False, seed_everything=9)
    (step.folder / "20260101-run").mkdir(parents=True)
    failed = run_steps(plan.steps, quiet=True)
    words = "begun with other settings" if made == "other settings" else "without run.json"
    assert words in failed["base"]
    assert (step.folder / "20260101-run").exists()


def test_two_studies_do_not_make_the_same_at_once(make_plan):
    """A step that another study runs is refused, on whichever host."""
    plan = Study(make_plan(trainings={"own": {"config": ["conf/photons.yaml"]}}))
    with hold(plan.steps["own"].beside("lock")):
        failed = run_steps(plan.steps, quiet=True)
    assert set(failed) == {"own"}
    assert re.search(rf"is still run by process {os.getpid()} of {socket.gethostname()} since \d{{4}}-", failed["own"])


def test_a_dry_run_tells_what_is_left(make_plan, pretend, capsys, monkeypatch):
    base = {"config": ["conf/photons.yaml"]}
    plan = Study(make_plan(trainings={"done": base, "begun": {**base, "options": {"seed_everything": 2}}, "new": base}))
    pretend(plan.steps["done"])
    pretend(plan.steps["begun"], finished=False)
    last = Run(plan.steps["begun"].folder).last
    last.parent.mkdir()
    last.touch()
    print_steps(plan.steps)
    done, begun, new = (re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines())
    assert done[:3] == ["done", "finished", "1.0 min"]
    assert begun[:2] == ["begun", "to resume"]
    assert new[:2] == ["new", "to do"]
    # What is printed can be run as it is.
    assert shlex.split(new[-1]) == ["calosim", "fit", *plan.steps["new"].words]


def test_an_interrupted_study_ends_what_it_runs(tmp_path, make_plan):
    """A request to end, such as a batch system's, reaches the commands; they leave no lock behind."""
    path = make_plan(simulate={str(tmp_path / "zn.root"): {"primaries": 100_000}})
    (step,) = Study(path).steps.values()
    log, lock = (step.beside(suffix) for suffix in ("log", "lock"))
    study = subprocess.Popen([sys.executable, "-c", STUDY, path])
    wait_for(log.exists)
    with pytest.raises(ValueError, match="is still run by"):
        hold(lock)
    study.send_signal(signal.SIGTERM)
    assert study.wait(30)
    hold(lock).close()
    assert not step.result.exists()


def test_jobs_and_what_is_of_slurm():
    with pytest.raises(ValueError, match="at least one job, got 0"):
        Execution(jobs=0)
    with pytest.raises(ValueError, match="expected it beside them"):
        Execution(slurm=Slurm(partition="gpu"))


def wait_for(there, seconds=60):
    """Waits until something is there."""
    deadline = time.monotonic() + seconds
    while not there() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_study_resumes_to_the_same_weights(tmp_path, make_showers, make_plan):
    import torch

    write(tmp_path / "zn.root", make_showers(responses=20))
    options = {
        "data.files": [str(tmp_path / "zn.root")],
        "trainer.max_epochs": 6,
        "data.batch_size": 8,
        "model.hidden": [8],
    }
    weights = []
    for name in ("straight", "killed"):
        out = tmp_path / name
        path = make_plan(name, trainings={"photons": {"config": ["conf/photons.yaml"]}}, common=options, out=str(out))
        run = Run(out / "photons")
        if name == "killed":
            study = subprocess.Popen([sys.executable, "-c", STUDY, path], env=os.environ | {"OMP_NUM_THREADS": "1"})
            wait_for(run.last.exists, 200)
            study.send_signal(signal.SIGTERM)
            study.wait(60)
            assert run.training is None, "it was over before it could be killed"
        assert run_steps(Study(path).steps, quiet=True) == {}
        assert run.training["epochs"] == 6
        weights.append(torch.load(run.last, weights_only=True)["state_dict"])
    assert [session["changed"] for session in run.record["sessions"]] == [{}]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
