"""Studies through Slurm: submitted at once, each step after those it needs; the same command again tells and collects."""

from __future__ import annotations

import re

import pytest
import yaml

from calosim.__main__ import main
from calosim.files import read_json
from calosim.showers.root import write

SLURM = ["--executor", "slurm", "--slurm.time", "10", "--slurm.cpus", "1", "--slurm.mem", "1500M"]


@pytest.fixture
def study(tmp_path, make_showers, monkeypatch):
    """A plan of a teacher, its fine-tuning and their evaluations: ``study(name, **further trainings)`` -> its path."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write(tmp_path / "zn.root", make_showers(responses=20))
    small = {f"model.flow.{key}": value for key, value in {"hidden": [8], "transforms": 1, "bins": 4}.items()}
    config = ["conf/teacher.yaml", "conf/coordinates/pixels.yaml", "conf/study/plain.yaml"]
    tune = {"model.init_from": "{base}", "data.particle": "gamma"}

    def make(name, **more):
        trainings = {
            "base": {"config": config, "options": {**small, "data.batch_size": 64}},
            "gd": {"config": ["conf/finetune/gd.yaml"], "options": tune},
            **more,
        }
        entries = {
            "out": str(tmp_path / name),
            "common": {"data.files": [str(tmp_path / "zn.root")], "trainer.max_epochs": 1},
            "trainings": trainings,
            "evaluate": {
                "runs": 1,
                "responses": 2,
                "rows": 20,
                "references": False,
                "classifier": False,
                "resamples": 0,
            },
            "table": {"particles": ["all", "gamma"], "modes": ["shape"], "reference": "base"},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(entries, sort_keys=False))
        return path

    return make


def compare(path, *words):
    return main(["compare", "--plan", str(path), "--resamples", "50", *words])


def jobs_of(folder):
    """Jobs by step."""
    return {path.stem: read_json(path)["job"] for path in (folder / "logs").glob("*.job")}


@pytest.mark.slow
def test_a_study_gives_the_tables_that_it_gives_locally(slurm, study, tmp_path, capsys):
    path, out = study("there"), tmp_path / "there"
    assert compare(path, *SLURM) == 0
    said = capsys.readouterr().out
    jobs = jobs_of(out)
    assert set(jobs) == {"base", "gd", "base-evaluation", "gd-evaluation"}
    assert said.splitlines()[4] == "4 queued"
    assert f"afterok:{jobs['base']}(unfulfilled)" in slurm.job(jobs["gd"])["Dependency"]
    # What is in the queue is not submitted twice, and not run here.
    assert compare(path, *SLURM) == 0
    assert compare(path) == 2
    assert "of Slurm, which is" in capsys.readouterr().out
    assert jobs_of(out) == jobs
    for job in jobs.values():
        slurm.wait(job, "COMPLETED", 280)
    assert compare(path, *SLURM) == 0
    assert "Tables: " in capsys.readouterr().out
    # The same steps made here: the same numbers, to the last digit.
    assert compare(study("here"), "--quiet") == 0
    times = re.compile(r"^## Cost.*", re.DOTALL | re.MULTILINE)
    texts = [times.sub("", (tmp_path / name / "comparison.md").read_text()) for name in ("there", "here")]
    assert texts[0].replace("there", "here") == texts[1]
    assert (out / "comparison.csv").read_text() == (tmp_path / "here" / "comparison.csv").read_text()


@pytest.mark.slow
def test_what_needs_a_failed_step_is_cancelled_and_the_rest_goes_on(slurm, study, tmp_path, capsys):
    broken = {"config": ["conf/teacher.yaml"], "options": {"data.particle": "muon"}}
    path, out = study("broken", broken=broken), tmp_path / "broken"
    assert compare(path, *SLURM) == 0
    jobs = jobs_of(out)
    slurm.wait(jobs["broken"], "FAILED", 120)
    slurm.wait(jobs["broken-evaluation"], "CANCELLED")
    for name in ("base", "gd", "base-evaluation", "gd-evaluation"):
        slurm.wait(jobs[name], "COMPLETED", 280)
    capsys.readouterr()
    assert compare(path, *SLURM) == 2
    said = capsys.readouterr()
    assert re.search(rf"^broken +failed +job {jobs['broken']}: calosim: error: unknown particle 'muon'", said.out, re.M)
    assert re.search(r"^broken-evaluation +failed +needs broken, which failed", said.out, re.M)
    assert "2 of 6 steps failed: broken, broken-evaluation" in said.err
    assert (out / "comparison.md").exists()
    # Only on request is it tried again.
    assert jobs_of(out) == jobs
    assert compare(path, *SLURM, "--retry") == 0
    again = jobs_of(out)
    assert {name for name in jobs if again[name] != jobs[name]} == {"broken", "broken-evaluation"}
    slurm("scancel", again["broken"])


def test_a_command_that_is_refused_submits_nothing(slurm, study, tmp_path, capsys, monkeypatch):
    assert compare(study("wrong"), *SLURM, "--slurm.partition", "nowhere") == 2
    assert "refused by sbatch" in capsys.readouterr().err
    assert not jobs_of(tmp_path / "wrong")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compare(tmp_path / "wrong.yaml", *SLURM) == 2
    assert "expected a machine that submits to Slurm" in capsys.readouterr().err
