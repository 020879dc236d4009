"""Batch scripts: what is asked for is in them, what runs is the command as given, and what is wrong is said before a job is."""

from __future__ import annotations

import subprocess

import pytest

from calosim.slurm import Slurm

PHOTONS = ["-c", "conf/photons.yaml"]
GENERATE = ["generate", "--shower", "s", "--photons", "p", "--primaries", "p.csv", "--out", "f.root"]


@pytest.fixture
def script(command, capsys):
    """The lines of a batch script: ``script("fit", ...)``."""

    def get(*words):
        capsys.readouterr()
        assert command("submit", *words, "--dry-run") == 0
        return capsys.readouterr().out.splitlines()

    return get


def test_a_training_has_a_task_for_each_gpu_and_is_told_before_its_limit(script):
    lines = script(
        "--slurm.gpus=2", "fit", *PHOTONS, "--slurm.nodes", 3, "--slurm.more", "[qos=x,exclusive]", "--slurm.cpus", 4
    )
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert asked >= {
        "nodes=3",
        "ntasks-per-node=2",
        "gpus-per-node=2",
        "signal=USR1@120",
        "requeue",
        "qos=x",
        "exclusive",
    }
    assert lines[-1].endswith("--trainer.devices 2 --trainer.num_nodes 3")
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=4 " in lines[-1]
    assert "fit -c conf/cluster/slurm.yaml -c conf/photons.yaml" in lines[-1]
    assert "--trainer.devices 1" in script("fit", *PHOTONS, "--slurm.gpus", 2, "--trainer.devices", 1)[-1]


def test_settings_of_a_cluster_are_a_file_and_setup_comes_first(script, tmp_path):
    (tmp_path / "athena.yaml").write_text('time: "4:00:00"\naccount: plg\nsetup: [module load CUDA]\n')
    lines = script(
        "convert", "--source", "a b", "--out", "c.root", "--slurm", tmp_path / "athena.yaml", "--slurm.account", "x"
    )
    assert {"#SBATCH --time=4:00:00", "#SBATCH --account=x"} < set(lines)
    assert lines[-2] == "module load CUDA"
    assert lines[-1].endswith("convert --source 'a b' --out c.root")
    assert not any("signal" in line or "requeue" in line for line in lines)


def test_a_script_is_what_the_shell_takes_it_for(script):
    files = ["--shower", "it's $HOME", "--photons", "p", "--primaries", "p", "--out", "{task} of 3.root"]
    lines = script("generate", *files, "--slurm.gpus", 2, "--slurm.array", "0-4:2,7%2")
    assert {"#SBATCH --ntasks-per-node=1", "#SBATCH --gpus-per-node=2"} < set(lines)
    words = lines[-1].partition(" -m ")[2]
    done = subprocess.run(
        ["bash", "-c", f"SLURM_ARRAY_TASK_ID=2; printf '%s\\n' {words}"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[2:] == [*files[:-1], "2 of 3.root"]


def test_jobs_of_an_array_have_numbers(script):
    assert Slurm(array="0-4:2,7%2").numbers == [0, 2, 4, 7]
    assert Slurm().numbers == []
    lines = script(*GENERATE, "--shard", "{task}/3", "--slurm.array", "1-3")
    assert "#SBATCH --array=1-3" in lines
    assert '"$SLURM_ARRAY_TASK_ID"/3' in lines[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected what to submit"),
        (["train"], "to submit, got 'train'"),
        (["submit", "fit"], "to submit, got 'submit'"),
        (["fit", *PHOTONS, "--slurm.tim", 3], "unknown option --slurm.tim; did you mean --slurm.time?"),
        (["fit", *PHOTONS, "--slurm.nodes", "many"], "--slurm.nodes: expected a whole number, got many"),
        (["fit", *PHOTONS, "--trainer.max_epoch", 3], "did you mean --trainer.max_epochs?"),
        (["fit", *PHOTONS, "--slurm.nodes", 0, "--dry-run"], "--slurm.nodes: expected at least 1, got 0"),
        (["fit", *PHOTONS, "--slurm.gpus", -1, "--dry-run"], "--slurm.gpus: expected at least 0, got -1"),
        (
            ["fit", *PHOTONS, "--slurm.time", "4h", "--dry-run"],
            "--slurm.time: expected minutes or a time such as 4:00:00",
        ),
        (["fit", *PHOTONS, "--slurm.mem", "-3", "--dry-run"], "--slurm.mem: expected memory such as 16G"),
        (["fit", *PHOTONS, "--slurm.array", "1-", "--dry-run"], "--slurm.array: expected numbers such as 0-15"),
        (["fit", *PHOTONS, "--slurm.array", "1-9:0"], "--slurm.array: expected numbers such as 0-15"),
        (["fit", *PHOTONS, "--slurm.array", "9-1"], "--slurm.array: expected numbers that ascend"),
        (["report", "--runs", "r", "--slurm.nodes", 2], "report is one process"),
        (["fit", *PHOTONS, "--slurm.array", "1-3"], "expected {task} in an option beside --slurm.array"),
        (["fit", *PHOTONS, "--run", "runs/{task}"], "expected --slurm.array beside {task}"),
        ([*GENERATE, "--shard", "{task}/16", "--slurm.array", "0-15"], "expected a shard such as 3/16"),
        (
            [*GENERATE, "--shard={task}/16", "--slurm.array", "1-8,10-16%4"],
            "--slurm.array: expected 1-16, the shards of",
        ),
        (["fit", *PHOTONS], "sbatch is not there"),
    ],
)
def test_what_is_refused_in_one_line(words, said, error_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert said in error_of("submit", *words)


def test_help_explains_what_may_be_asked_for(command, capsys):
    command("submit", "--help")
    text = capsys.readouterr().out
    assert all(f"--slurm.{name} " in text for name in Slurm.__dataclass_fields__)
