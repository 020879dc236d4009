"""Shards: together they are one run, bit for bit, and what does not belong together is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calosim.data import Writer, read, write
from calosim.data.reading import PrimariesFile
from calosim.data.root import read_made
from calosim.io import claimed
from calosim.options import Generate, Merge, Shard, Stages, Work
from calosim.simulation import generate as generating
from calosim.simulation.generate import generate, merge, stream
from calosim.simulation.simulator import FastSimulator

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
            merge(Merge(files, str(tmp_path / "all.root"), quiet=True))
    with pytest.raises(ValueError, match=r"2\.root: is also a source"):
        merge(Merge([first, second], second, quiet=True))
    assert not (tmp_path / "all.root").exists()
    merge(Merge([second, first], str(tmp_path / "all.root"), quiet=True))
    assert len(read(tmp_path / "all.root")) == 20
    assert json.dumps(read_made(tmp_path / "all.root")["shard"]) == '"1/1"'


#: Rows of a part in these tests.
PART = 20


@pytest.fixture(scope="module")
def models(run_folders) -> Stages:
    return Stages(str(run_folders["splits"]), str(run_folders["photons"]))


@pytest.fixture
def primaries(showers, tmp_path) -> str:
    """A file of 50 primaries."""
    few = showers.select(slice(0, 50))
    particles = few.particles.copy()
    particles[:, 0] = np.sqrt(np.square(particles[:, 4:7]).sum(1) + (particles[:, 7] / 1000) ** 2)
    write(tmp_path / "primaries.root", type(few)(particles, few.pdg, few.images, "zn"))
    return str(tmp_path / "primaries.root")


@pytest.fixture
def sampled(monkeypatch) -> list[int]:
    """The rows that are simulated; once ``stop`` of them were, the user interrupts."""
    monkeypatch.setattr(generating, "PART", PART)
    rows: list[int] = []
    sample = FastSimulator.sample

    def counting(self, particles, pdg, seed, numbers, **more):
        if len(rows) >= counting.stop:
            raise KeyboardInterrupt
        rows.extend(numbers.tolist())
        return sample(self, particles, pdg, seed, numbers, **more)

    counting.stop = 10**6
    monkeypatch.setattr(FastSimulator, "sample", counting)
    return rows


def test_a_stream_is_the_sample_in_pieces(models, primaries):
    simulator, source = FastSimulator.load(models.shower, models.photons), PrimariesFile.open(primaries)
    particles, pdg = next(source.pieces())
    repeated = np.repeat(np.arange(50), 3)
    whole = simulator.sample(particles[repeated], pdg[repeated], 5)
    pieces = list(stream(simulator, source, range(4, 31), 3, seed=5, batch_size=3))
    assert [len(piece) for piece in pieces] == [12, 12, 3]
    assert np.array_equal(np.concatenate([piece.images for piece in pieces]), whole[4:31])
    assert np.array_equal(np.concatenate([piece.particles for piece in pieces]), particles[repeated[4:31]])


def test_what_was_interrupted_goes_on(models, primaries, sampled, tmp_path, capsys):
    out, parts = tmp_path / "out.root", tmp_path / "out.root.parts"

    def make(seed=1):
        generate(Generate(models, primaries, str(out), 2, seed=seed, work=Work(batch_size=10), quiet=True))

    FastSimulator.sample.stop = 40
    with pytest.raises(KeyboardInterrupt):
        make()
    assert not out.exists()
    assert sorted(path.name for path in parts.iterdir()) == ["0.root", "20.root"]
    FastSimulator.sample.stop = 10**6
    with pytest.raises(
        ValueError, match=r"out.root.parts.0.root: is of another command \(seed=1 instead of 2\); remove"
    ):
        make(seed=2)
    with claimed(parts, "busy"), pytest.raises(ValueError, match="another process makes these responses now"):
        make()
    sampled.clear()
    make()
    assert sampled == list(range(40, 100))
    assert not parts.exists()
    assert "100 responses of ZN to 50 primaries; " in capsys.readouterr().out
    goes_on, made = read(out), read_made(out)
    generating.PART = 1000
    make()
    assert np.array_equal(read(out).images, goes_on.images)
    assert np.array_equal(read(out).particles, goes_on.particles)
    assert read_made(out) == made


def test_primaries_outside_of_the_training_are_counted_and_refused_if_asked(run_folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head, photon = "pdg,energy,vx,vy,vz,px,py,pz\n", "22,100,0,0,0,0,0,100\n"
    models = [str(run_folders[name]) for name in ("splits", "photons")]

    def answer(lines, **more):
        (tmp_path / "p.csv").write_text(head + photon + lines)
        generate(Generate(Stages(*models), "p.csv", "out.root", quiet=True, **more))

    answer("")
    assert not capsys.readouterr().err
    outside = "1000010020,1000,0,0,0,0,0,999.998\n2112,90000,0,0,0,0,0,90000\n"
    answer(outside)
    said = capsys.readouterr().err
    for words in ("of 3 primaries", "1 by shower model: d2 never seen", "1 by photon-sum model: energy beyond ["):
        assert words in said
    (tmp_path / "out.root").unlink()
    with pytest.raises(ValueError, match="d2 never seen"):
        answer(outside, strict=True)
    for line, expected in (("2112,2500,0,0,0,0,0,0", "0.939565"), ("2112,0.5,0,0,0,0,0,0.5", "1.06432")):
        with pytest.raises(
            ValueError, match=f"row 1: energy is .* GeV; expected {expected} GeV, by its momentum and mass"
        ):
            answer(line + "\n")
    assert not (tmp_path / "out.root").exists()


def test_what_cannot_be_made_is_refused_before_the_work(models, primaries, sampled, tmp_path):
    for out, more, said in (
        ("a.txt", {}, "unknown suffix '.txt'"),
        ("primaries.root", {}, "is also a source"),
        ("a.root", {"responses": 0}, "at least one response"),
        ("a.root", {"work": Work(batch_size=0)}, "batch size of at least 1"),
        ("a.root", {"work": Work(shard="0/3")}, "such as 3/16, from 1/16 to 16/16, got 0/3"),
        ("a.root", {"work": Work(shard="51/51")}, "no more shards than responses, of which there are 50"),
        ("a.root", {"work": Work(device="abacus")}, "device 'abacus' is not available"),
    ):
        with pytest.raises(ValueError, match=said):
            generate(Generate(models, primaries, str(tmp_path / out), quiet=True, **more))
    assert not sampled
    assert [path.name for path in tmp_path.iterdir()] == ["primaries.root"]
