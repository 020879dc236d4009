"""Steps as jobs, without a Slurm: what is submitted when, and how steps stand. On a real one: tests/cluster/test_studies.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from calosim.slurm import Slurm
from calosim.studies import queue
from calosim.studies.plan import load_plan
from calosim.studies.run import run_steps, submit_steps

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
    monkeypatch.setattr(queue, "_states", lambda: dict(cluster.states))
    monkeypatch.setattr("shutil.which", lambda name: name)
    return cluster


def test_steps_wait_for_those_they_need_and_are_submitted_once(cluster, make_plan, pretend, capsys):
    plan = load_plan(make_plan(trainings={"base": {**BASE, "evaluate": {}}, "child": CHILD}, evaluate={"runs": 1}))
    asked = Slurm(gpus=2, more=["qos=long"])
    for _ in range(2):
        assert submit_steps(plan, asked) is None
    fits, judging = cluster.submitted[:2], cluster.submitted[2]
    assert [verb for _, verb, _ in cluster.submitted] == ["fit", "fit", "evaluate"]
    assert all(settings.devices == 2 and requeue for settings, _, requeue in fits)
    assert (judging[0].devices, judging[2]) == (1, False)
    assert fits[0][0].more == ["qos=long", "job-name=base", "kill-on-invalid-dep=yes"]
    assert fits[1][0].more[-1] == judging[0].more[-1] == "dependency=afterok:1"
    cluster.states["1"] = "RUNNING"
    capsys.readouterr()
    assert submit_steps(plan, asked) is None
    assert capsys.readouterr().out.splitlines()[::3] == ["base             running  job 1", "1 running, 2 queued"]
    # Here nothing is run that is in the queue.
    assert "is job 1 of Slurm, which is RUNNING" in run_steps(plan, quiet=True)["base"]
    pretend(plan.steps["base"])
    pretend(plan.steps["child"])
    cluster.states.clear()
    assert set(submit_steps(plan, asked)) == {"base-evaluation"}


def test_what_failed_is_told_and_submitted_again_on_request(cluster, make_plan):
    plan = load_plan(make_plan(trainings={"base": BASE, "child": CHILD, "other": BASE}))
    assert submit_steps(plan, Slurm()) is None
    (plan.out / "logs" / "1-1.out").write_text(
        "calosim: error: no\nsrun: error: node: task 0: Exited with exit code 2\n"
    )
    del cluster.states["1"]
    with pytest.raises(ValueError, match="2 of 3 steps failed: base, child; 1 still in the queue"):
        submit_steps(plan, Slurm())
    cluster.states.clear()
    failed = submit_steps(plan, Slurm(), quiet=True)
    assert failed["base"].startswith("job 1: calosim: error: no (see ")
    assert failed["child"] == "needs base, which failed"
    assert "left no log" in failed["other"]
    assert submit_steps(plan, Slurm(), retry=True) is None
    assert len(cluster.submitted) == 6
    assert cluster.submitted[4][0].more[-1] == "dependency=afterok:4"


def test_a_shared_training_is_one_job_of_two_studies(cluster, tmp_path, make_plan):
    base = {**BASE, "shared": True}
    for name in ("one", "other"):
        plan = load_plan(make_plan(name, out=str(tmp_path / name), trainings={"base": base, "child": CHILD}))
        assert submit_steps(plan, Slurm()) is None
    assert [settings.more[-1] for settings, *_ in cluster.submitted[1:]] == ["dependency=afterok:1"] * 2
