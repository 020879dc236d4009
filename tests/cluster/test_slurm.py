"""The Slurm of the tests beside this one: jobs end as they should, wait for each other, start again; two of it coexist."""

from __future__ import annotations

import subprocess


def test_jobs_run_wait_and_fail(slurm, tmp_path):
    where = ("--parsable", f"--chdir={tmp_path}", "--output=%A-%a.out")
    first = slurm("sbatch", *where, "--array=0-1", "--wrap", "echo $SLURM_ARRAY_TASK_ID")
    failed = slurm("sbatch", *where, f"--dependency=afterok:{first}", "--gpus-per-node=2", "--wrap", "exit 3")
    never = slurm("sbatch", *where, f"--dependency=afterok:{failed}", "--kill-on-invalid-dep=yes", "--wrap", "true")
    assert slurm.wait(failed)["ExitCode"] == "3:0"
    assert sorted(path.read_text() for path in tmp_path.glob(f"{first}-*.out")) == ["0\n", "1\n"]
    assert slurm.job(failed)["JobState"] == "FAILED"
    assert slurm.wait(never)["JobState"] == "CANCELLED"
    assert slurm("srun", "--ntasks=2", "sh", "-c", "echo $SLURM_NTASKS").split() == ["2", "2"]


def test_a_job_starts_again(slurm, tmp_path):
    words = 'echo "$SLURM_RESTART_COUNT" >> seen; [ -n "$SLURM_RESTART_COUNT" ] || scontrol requeue $SLURM_JOB_ID'
    job = slurm("sbatch", "--parsable", f"--chdir={tmp_path}", "--requeue", "--wrap", words)
    assert slurm.wait(job, "COMPLETED")["Restarts"] == "1"
    assert (tmp_path / "seen").read_text() == "\n1\n"


def test_two_stand_side_by_side(slurm, tmp_path):
    subprocess.run([slurm.script, "start", tmp_path], check=True)
    try:
        both = [subprocess.run(["bash", "-c", f". {f}/env; srun hostname"]) for f in (tmp_path, slurm.folder)]
        assert [done.returncode for done in both] == [0, 0]
    finally:
        subprocess.run([slurm.script, "stop", tmp_path], check=True)
    assert slurm("sinfo", "--noheader", "--format=%T") == "idle"
