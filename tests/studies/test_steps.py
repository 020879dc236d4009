"""Steps as commands: what was begun is gone on with, from its newest checkpoint; who has a lock says so."""

from __future__ import annotations

import os

import pytest

from calosim.runs import Run
from calosim.studies.plan import load_plan
from calosim.studies.run import beside, command, last_line


@pytest.fixture
def step(make_plan):
    return load_plan(make_plan(trainings={"base": {"config": ["conf/photons.yaml"]}})).steps["base"]


def test_a_begun_training_goes_on_from_its_newest_checkpoint(step, pretend):
    words = ["fit", *step.words]
    assert command(step) == words
    pretend(step, finished=False)
    run = Run(step.folder)
    run.last.parent.mkdir()
    for path, time, name in ((run.last, 10, "last"), (run.next_hpc(), 20, "hpc"), (run.last, 30, "last")):
        path.touch()
        os.utime(path, (time, time))
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
    log = beside(step, tmp_path, "log")
    assert last_line(log) == ""
    log.write_text("epoch 1\ncalosim: error: no\n\nsrun: error: node1: task 0: Exited with exit code 2\n")
    assert last_line(log) == "calosim: error: no"
