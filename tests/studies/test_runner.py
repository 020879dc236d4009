"""The runner: finished steps are skipped, failures shown while the rest goes on, killed runs resumed, nothing made twice."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from calosim.data.reading import read
from calosim.data.root import write
from calosim.runs import Run
from calosim.slurm import Slurm
from calosim.studies.plan import load_plan
from calosim.studies.run import Execution, beside, hold, run_steps

#: A study in a process of its own.
STUDY = """
import sys
from calosim.studies.plan import load_plan
from calosim.studies.run import run_steps
run_steps(load_plan(sys.argv[1]), quiet=True)
"""


def test_failures_are_shown_and_the_rest_goes_on(tmp_path, make_plan):
    few = {"primaries": 5, "responses_per_primary": 2, "quiet": True}
    good, bad, later = (str(tmp_path / f"{name}.root") for name in ("good", "bad", "later"))
    simulate = {good: few, bad: {**few, "detector": "nowhere"}, later: few}
    plan = load_plan(make_plan(simulate=simulate))
    failed = run_steps(plan, quiet=True)
    assert len(read(good))
    # `later` was to come after `bad`.
    assert set(failed) == {bad, later}
    assert "nowhere" in failed[bad]
    assert "\n" not in failed[bad]
    assert failed[later] == f"needs {bad}, which failed"
    before = Path(good).stat().st_mtime_ns
    assert set(run_steps(plan, quiet=True)) == {bad, later}
    assert Path(good).stat().st_mtime_ns == before


@pytest.mark.parametrize("made", ["something else", "other settings"])
def test_a_folder_that_is_not_the_plans_is_left_alone(made, make_plan, pretend):
    plan = load_plan(make_plan(trainings={"base": {"config": ["conf/photons.yaml"]}}))
    step = plan.steps["base"]
    if made == "other settings":
        pretend(step, finished=False, seed_everything=9)
    (step.folder / "20260101-run").mkdir(parents=True)
    failed = run_steps(plan, quiet=True)
    words = "begun with other settings" if made == "other settings" else "without run.json"
    assert words in failed["base"]
    assert (step.folder / "20260101-run").exists()


def test_two_studies_do_not_make_the_same_at_once(make_plan, pretend):
    """A step that another study runs is refused, on whichever host; a shared training is waited for, and then there."""
    base = {"config": ["conf/photons.yaml"]}
    plan = load_plan(make_plan(trainings={"own": base, "common": {**base, "shared": True}}))
    own, common = plan.steps["own"], plan.steps["common"]
    with hold(beside(own, plan.out, "lock")), hold(beside(common, plan.out, "lock")) as lock:
        made = threading.Timer(0.3, lambda: (pretend(common), lock.close()))
        made.start()
        failed = run_steps(plan, quiet=True)
    assert set(failed) == {"own"}
    assert re.search(rf"is still run by process {os.getpid()} of {socket.gethostname()} since \d{{4}}-", failed["own"])


def test_an_interrupted_study_ends_what_it_runs(tmp_path, make_plan):
    """A request to end, such as a batch system's, reaches the commands; they leave no lock behind."""
    path = make_plan(simulate={str(tmp_path / "zn.root"): {"primaries": 100_000}})
    (step,) = load_plan(path).steps.values()
    log, lock = (beside(step, tmp_path / "out", suffix) for suffix in ("log", "lock"))
    study = subprocess.Popen([sys.executable, "-c", STUDY, path])
    wait_for(log.exists)
    assert isinstance(hold(lock), str)
    study.send_signal(signal.SIGTERM)
    assert study.wait(30)
    with hold(lock) as stream:
        assert not isinstance(stream, str)
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
        assert run_steps(load_plan(path), quiet=True) == {}
        assert run.training["epochs"] == 6
        weights.append(torch.load(run.last, weights_only=True)["state_dict"])
    assert [session["changed"] for session in run.record["sessions"]] == [{}]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
