"""Studies through Slurm: submitted at once, each step after those it needs; the same command again tells and collects."""

from __future__ import annotations

import re

import pytest
import yaml

from calosim.__main__ import main
from calosim.data.root import write
from calosim.io import read_json
from calosim.slurm import Slurm

#: All processors of the test Slurm: one job at a time.
SLURM = ["--executor", "slurm", "--slurm.time", "10", "--slurm.cpus", "4", "--slurm.mem", "1500M"]


@pytest.fixture
def study(tmp_path, make_showers, monkeypatch):
    """A plan of tiny trainings in a folder of its name: ``study(name, **trainings)`` -> its path."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write(tmp_path / "zn.root", make_showers(responses=20))

    def make(name, **trainings):
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
            "table": {"particles": ["all", "gamma"], "modes": ["shape"], "metrics": ["ws", "mae_cond"]},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(entries, sort_keys=False))
        return path

    return make


#: A teacher and its fine-tuning; a photon-sum model.
TEACHER = {
    "config": ["conf/teacher.yaml", "conf/representation/pixels.yaml", "conf/study/plain.yaml"],
    "options": {"model.flow.hidden": [8], "model.flow.transforms": 1, "model.flow.bins": 4, "data.batch_size": 64},
    "evaluate": False,
}
TUNED = {"config": ["conf/finetune/gd.yaml"], "options": {"model.init_from": "{base}"}}
PHOTONS = {"config": ["conf/photons.yaml"], "options": {"model.hidden": [8], "model.members": 1}, "evaluate": False}


def compare(path, *words):
    return main(["compare", "--plan", str(path), "--resamples", "50", *words])


def jobs_of(folder):
    """Jobs by step."""
    return {path.stem: read_json(path)["job"] for path in (folder / "logs").glob("*.job")}


@pytest.mark.slow
def test_a_study_gives_the_tables_that_it_gives_locally(slurm, study, tmp_path, capsys):
    path, out = study("there", base=TEACHER, gd=TUNED), tmp_path / "there"
    assert compare(path, *SLURM) == 0
    said = capsys.readouterr().out
    jobs = jobs_of(out)
    assert set(jobs) == {"base", "gd", "gd-evaluation"}
    assert said.splitlines()[3] == "3 queued"
    assert f"afterok:{jobs['base']}(unfulfilled)" in slurm.job(jobs["gd"])["Dependency"]
    # What is in the queue is not submitted twice, and not run here.
    assert compare(path, *SLURM) == 0
    assert compare(path) == 2
    assert "of Slurm, which is" in capsys.readouterr().out
    assert jobs_of(out) == jobs
    for job in sorted(jobs.values(), key=int):
        slurm.wait(job, "COMPLETED", 280)
    assert compare(path, *SLURM) == 0
    assert "Tables: " in capsys.readouterr().out
    # The same steps made here: the same numbers, to the last digit.
    assert compare(study("here", base=TEACHER, gd=TUNED), "--quiet") == 0
    # All but the title and the times.
    texts = [(tmp_path / name / "comparison.md").read_text().partition("## Cost")[0] for name in ("there", "here")]
    assert texts[0].partition("\n")[2] == texts[1].partition("\n")[2]
    assert (out / "comparison.csv").read_text() == (tmp_path / "here" / "comparison.csv").read_text()


@pytest.mark.slow
def test_what_needs_a_failed_step_is_cancelled_and_the_rest_goes_on(slurm, study, tmp_path, capsys, monkeypatch):
    broken, child = ({**PHOTONS, "options": o} for o in ({"data.particle": "muon"}, {"data.cache_dir": "{broken}"}))
    path, out = study("broken", base=PHOTONS, broken=broken, child=child), tmp_path / "broken"
    # A command that is interrupted while it submits has submitted what it has.
    submit, calls = Slurm.submit, []
    monkeypatch.setattr(
        Slurm, "submit", lambda *a, **k: 1 / 0 if len(calls) > 1 else calls.append(0) or submit(*a, **k)
    )
    with pytest.raises(ZeroDivisionError):
        compare(path, *SLURM)
    first = jobs_of(out)
    monkeypatch.undo()
    monkeypatch.setenv("SLURM_CONF", str(slurm.folder / "slurm.conf"))
    assert compare(path, *SLURM) in (0, 2)  # the first may have failed already
    jobs = jobs_of(out)
    assert len(first) == 2
    assert first.items() < jobs.items()
    for name, state in {"base": "COMPLETED", "broken": "FAILED", "child": "CANCELLED"}.items():
        slurm.wait(jobs[name], state, 280)
    capsys.readouterr()
    assert compare(path, *SLURM) == 2
    said = capsys.readouterr()
    assert re.search(rf"^broken +failed +job {jobs['broken']}: calosim: error: unknown particle 'muon'", said.out, re.M)
    assert re.search(r"^child +failed +needs broken, which failed", said.out, re.M)
    assert re.search(r"^base +finished", said.out, re.M)
    assert jobs_of(out) == jobs
    # Only on request is it tried again.
    assert compare(path, *SLURM, "--retry") == 0
    assert {name for name, job in jobs_of(out).items() if job != jobs[name]} == {"broken", "child"}
    slurm("scancel", *jobs_of(out).values())


def test_a_command_that_is_refused_submits_nothing(slurm, study, tmp_path, capsys, monkeypatch):
    assert compare(study("wrong", base=PHOTONS), *SLURM, "--slurm.partition", "nowhere") == 2
    assert "refused by sbatch" in capsys.readouterr().err
    assert not jobs_of(tmp_path / "wrong")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compare(tmp_path / "wrong.yaml", *SLURM) == 2
    assert "expected a machine that submits to Slurm" in capsys.readouterr().err
