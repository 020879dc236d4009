"""Shards: together they are one run, bit for bit, and what does not belong together is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calosim.data import Writer, read
from calosim.data.root import read_made
from calosim.simulation.generate import Shard, merge

CSV = "pdg,energy,vx,vy,vz,px,py,pz\n" + "".join(f"22,{100 + k},0,0,0,0,0,{100 + k}\n" for k in range(7))


def test_shards_are_all_rows_each_once():
    for total, count in ((7, 3), (16, 16), (10**7, 64)):
        ranges = [Shard(number, count).rows(total) for number in range(1, count + 1)]
        assert [0, *(part.stop for part in ranges)] == [*(part.start for part in ranges), total]
        assert {len(part) for part in ranges} <= {total // count, total // count + 1}
    assert Shard.read("3/16").path("a/fast.x.root") == Path("a/fast.x.3-of-16.root")
    assert Shard.read(None).path("fast.root") == Path("fast.root")
    for text in ("4/3", "0/3", "3", "1/3/5", "a/3", "-1/3", "1/0"):
        with pytest.raises(ValueError, match="expected a shard such as 3/16"):
            Shard.read(text)


def test_shards_together_are_one_run(run_folders, tmp_path, capsys, command):
    (tmp_path / "p.csv").write_text(CSV)
    words = ["generate", "--shower", run_folders["splits"], "--photons", run_folders["photons"]]
    words += ["--primaries", tmp_path / "p.csv", "--responses", 3, "--quiet", "--out"]
    assert command(*words, tmp_path / "one.root") == 0
    for number in (2, 1, 4, 3):
        assert command(*words, tmp_path / "all.root", "--shard", f"{number}/4") == 0
    capsys.readouterr()
    assert command(*words, tmp_path / "all.root", "--shard", "2/4") == 0
    assert capsys.readouterr().out.endswith("all.2-of-4.root: is there already, all 5 responses of shard 2/4\n")
    assert command("merge", "--shards", tmp_path / "all.*-of-4.root", "--out", tmp_path / "all.root") == 0
    one, merged = (read(tmp_path / name) for name in ("one.root", "all.root"))
    assert len(one) == 21
    for name in ("particles", "pdg", "images"):
        assert np.array_equal(getattr(one, name), getattr(merged, name))
    assert read_made(tmp_path / "one.root") == read_made(tmp_path / "all.root")
    assert sorted(path.name for path in tmp_path.glob("all*")) == [
        *(f"all.{k}-of-4.root" for k in (1, 2, 3, 4)),
        "all.root",
    ]


@pytest.fixture
def shard(showers, tmp_path) -> Callable[..., str]:
    """Writes a file that says of itself that it is a shard of 20 rows."""

    def write(name: str, text: str, rows: int = 10, **other: object) -> str:
        made = {"models": "m", "primaries": "p", "seed": 1, "rows": 20, "shard": text, **other}
        with Writer(tmp_path / name, "zn", made) as writer:
            writer.extend(showers.select(slice(0, rows)))
        return str(tmp_path / name)

    return write


def test_what_does_not_belong_together_is_refused(shard, root_file, tmp_path):
    first, second = shard("1.root", "1/2"), shard("2.root", "2/2")
    for files, said in (
        ([first], "1 of 2 shards are missing: 2; expected all of them"),
        ([], "no shard to merge"),
        ([first, second, shard("again.root", "2/2")], "again.root: is shard 2/2, as .*2.root is; expected each once"),
        ([first, first], "1.root: is shard 1/2, as"),
        (
            [first, shard("seed.root", "2/2", seed=2)],
            r"seed.root: does not belong to .*1.root \(it has seed=2 instead of 1\)",
        ),
        ([first, shard("models.root", "2/2", models="n")], "it has models='n' instead of 'm'"),
        ([first, shard("primaries.root", "2/2", primaries="q")], "it has primaries='q' instead of 'p'"),
        ([first, shard("three.root", "2/3")], "it has shard='N/3' instead of 'N/2'"),
        ([first, shard("short.root", "2/2", 9)], "short.root: holds 9 rows; expected 10 of shard 2/2"),
        ([first, str(root_file)], "zn.root: is no shard; expected what `calosim generate --shard` writes"),
        ([first, shard("whole.root", "1/1")], "whole.root: is no shard"),
        ([first, shard("strange.root", "much")], "strange.root: is no shard"),
        ([first, str(tmp_path / "no.root")], "no.root: no such file"),
    ):
        with pytest.raises(ValueError, match=said):
            merge(files, str(tmp_path / "all.root"), quiet=True)
    with pytest.raises(ValueError, match=r"2\.root: is also a source"):
        merge([first, second], second, quiet=True)
    assert not (tmp_path / "all.root").exists()
    merge([second, first], str(tmp_path / "all.root"), quiet=True)
    assert len(read(tmp_path / "all.root")) == 20
    assert json.dumps(read_made(tmp_path / "all.root")["shard"]) == '"1/1"'
