"""Generation on a real Slurm: an array of shards, and behind it the job that joins them."""

from __future__ import annotations

import numpy as np

from calosim.data import read

CSV = "pdg,energy,vx,vy,vz,px,py,pz\n" + "".join(f"22,{100 + k},0,0,0,0,0,{100 + k}\n" for k in range(7))


def test_an_array_of_shards_is_one_run(slurm, run_folders, command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text(CSV)
    words = ["generate", "--shower", run_folders["splits"], "--photons", run_folders["photons"], "--primaries", "p.csv"]
    words += ["--responses", 3, "--out"]
    assert command(*words, "one.root") == 0
    capsys.readouterr()
    array = ["--shard", "{task}/3", "--slurm.array", "1-3"]
    jobs = []
    for more in (
        [*words, "all.root", *array],
        ["merge", "--shards", "all.*-of-3.root", "--out", "all.root", "--slurm.more", "[dependency=afterok:%s]"],
    ):
        assert command("submit", *(word % jobs[0] if "%s" in str(word) else word for word in more)) == 0
        jobs.append(capsys.readouterr().out.split()[1].rstrip(":"))
    ended = slurm.wait(jobs[1], seconds=400)
    logs = {path.name: path.read_text() for path in tmp_path.glob("slurm/*.out")}
    assert ended["JobState"] == "COMPLETED", logs
    assert len(logs) == 4
    one, merged = (read(tmp_path / name) for name in ("one.root", "all.root"))
    assert all(np.array_equal(getattr(one, name), getattr(merged, name)) for name in ("particles", "pdg", "images"))
