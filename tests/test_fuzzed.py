"""Damaged files of every kind, by a seeded generator: one line that names the file, soon, in little memory, nothing executed."""

from __future__ import annotations

import io
import os
import random
import re
import resource
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

from calosim.data import convert, read, write
from calosim.data.reading import read_primaries
from calosim.io import read_npz
from calosim.models.checkpoints import load_module
from calosim.options import Convert
from calosim.studies.plan import Study
from calosim.studies.run import is_finished

#: Seconds and bytes that a damaged file may cost.
PATIENCE, MEMORY = 20, 2 << 30
#: Files that ROOT wrote, with every kind of branch.
FORMS = {"o2sim-split99-zstd", "o2sim-split0-default", "nested", "vector", "rntuple", "snapshot"}
#: Numbers that are more than there is.
EXTREME = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"\x40\x00\x00\x00")
#: Words in the place of a number or a name.
WORDS = [
    "nan",
    "inf",
    "-inf",
    ".inf",
    "1e999",
    "-1",
    "0",
    "9" * 20,
    "1e19",
    "0x10",
    "0o17",
    "1_000",
    "٣",
    "2001-01-01",
    "../..",
]
WORDS += [*",;\"'\\#[{:-~*&!|>%", ",,", "}}", "null", "true", "{base}", "{0.__class__}"]
WORDS += ["", "\0", "\ufeff", "\r", "\n\n", "\\", "9" * 5000, "x" * 200_000, "é" * 10, "&a [*a, *a]", "<<: *a"]
WORDS += ['!!python/object/apply:os.system ["touch executed"]', "!!binary aGk="]


class Hang(BaseException):
    """A file that takes too long; no ``except Exception`` takes it for damage."""


class Trap:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def mutated(data: bytes, rng: random.Random, text: bool) -> bytes:
    """Bytes with one to four faults."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _mutated_once(bytearray(data), rng, text)
    return data


def _mutated_once(data: bytearray, rng: random.Random, text: bool) -> bytes:
    at, size = rng.randrange(len(data) or 1), rng.choice((1, 4, 30, 1000))
    if rng.random() < 0.3:
        at = rng.randrange(min(len(data), 300) or 1)  # headers are small, and matter
    if text and rng.random() < 0.7:
        # A word is what stands between separators.
        begin = max([data.rfind(sign, 0, at) for sign in b" ,:\n"]) + 1
        ends = [end for sign in b" ,:\n" if (end := data.find(sign, at)) >= 0]
        return bytes(data[:begin]) + rng.choice(WORDS).encode() + bytes(data[min(ends, default=len(data)) :])
    match rng.randrange(7):
        case 0:
            return bytes(data[:at])
        case 1:
            for k in range(at, min(at + size, len(data)), rng.randint(1, 9)):
                data[k] = rng.randrange(256)
        case 2:
            del data[at : at + size]
        case 3:
            data[at:at] = data[at : at + size]
        case 4:
            data[at:at] = rng.randbytes(size)
        case 5:
            data[at : at + size] = bytes(len(data[at : at + size]))
        case 6:
            data[at : at + 4] = rng.choice(EXTREME)
    return bytes(data)


class Kind(NamedTuple):
    """A kind of file: its name, a good one's bytes, what reads it, and whether it is text."""

    name: str
    good: bytes
    use: Callable[[Path], Any]
    text: bool = False


def read_plan(path: Path) -> None:
    """All that is read of a plan before its first step."""
    study = Study(path)
    assert study.table
    for step in study.steps.values():
        is_finished(step)
        if step.subcommand == "fit":
            assert step.settings


@contextmanager
def limited() -> Iterator[None]:
    """Ends what takes too long, and refuses memory beyond what is allowed."""

    def hang(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fault_of(kind: Kind, path: Path) -> str:
    """What is wrong with how a file is read; empty if it is taken, or refused as it should be."""
    with warnings.catch_warnings(record=True) as warned, limited():
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # which users do not see
        try:
            kind.use(path)
        except ValueError as error:
            said, reason = str(error), error.__context__
            if type(reason) is MemoryError:
                return "wants more memory"
            if "\n" in said or len(said) > 600 or not re.search(f"{path.name}|training ", said):
                return f"says {said[:300]!r}"
        except (Exception, Hang) as error:
            return f"{type(error).__name__}: {str(error)[:300]}"
    return "; ".join(f"warns {str(w.message)[:200]}" for w in warned)


@pytest.fixture(scope="module")
def kinds(make_showers, run_folders, tmp_path_factory) -> dict[str, list[Kind]]:
    """Good files, and what reads them."""
    folder = tmp_path_factory.mktemp("good")
    showers = make_showers().select(np.arange(12))
    write(folder / "a.root", showers)
    root = (folder / "a.root").read_bytes()
    convert(Convert(str(folder / "a.root"), str(folder / "a.h5"), quiet=True))
    by_root = sorted(path for path in (Path(__file__).parent / "data" / "root").glob("*.root") if path.stem in FORMS)

    def npz(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.savez_compressed(stream, arr_0=array)
        return stream.getvalue()

    tables = {"particles": np.column_stack([showers.particles, showers.pdg]), "responses": showers.images}
    for name, array in tables.items():
        (folder / f"whole_{name}.npz").write_bytes(npz(array))
    columns = [showers.pdg, *showers.particles.T[:7]]
    header = "Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"
    lines = [
        ",".join(["N", *map(str, row), str(total)]) for *row, total in zip(*columns, showers.photon_sum, strict=True)
    ]
    table = "\n".join([header, *lines, ""]).encode()
    image = "\n".join(" ".join(map(str, line)) for line in showers.images.reshape(-1, showers.images.shape[2])).encode()
    (folder / "table.csv").write_bytes(table)
    (folder / "image.txt").write_bytes(image)
    names = "pdg,energy,vx,vy,vz,px,py,pz"
    primaries = "\n".join([names, *(",".join(map(str, row)) for row in zip(*columns, strict=True))]).encode()
    settings = {
        "out": "study",
        "simulate": {"z.root": {"detector": "zn", "primaries": 5, "seed": 1}},
        "common": {"data.files": ["z.root"]},
        "trainings": {
            "base": {"config": ["conf/photons.yaml"], "options": {"trainer.max_epochs": 1, "data.batch_size": 3}},
            "more": {"each": {"seed_everything": [1, 2]}, "config": ["conf/photons.yaml"], "options": {"data.seed": 2}},
        },
        "evaluate": {"runs": 1, "rows": 10},
        "table": {"reference": "base", "metrics": ["ws"]},
    }
    files = [
        Kind("a.root", root, read),
        Kind("primaries.root", root, read_primaries),
        Kind("b_particles.npz", npz(tables["particles"]), lambda p: read([p, folder / "whole_responses.npz"])),
        Kind("b_responses.npz", npz(tables["responses"]), lambda p: read([folder / "whole_particles.npz", p])),
        Kind("c.csv", table, lambda p: read([p, folder / "image.txt"], "zn"), True),
        Kind("c.txt", image, lambda p: read([folder / "table.csv", p], "zn"), True),
        Kind("primaries.csv", primaries, read_primaries, True),
        Kind("a.h5", (folder / "a.h5").read_bytes(), read),
        *(Kind(path.name, path.read_bytes(), lambda p: read(p, "zn")) for path in by_root),
    ]
    stored = {name: run_folders[name] / "checkpoints" / "best.ckpt" for name in ("splits", "photons")}
    models = [Kind(f"{name}.ckpt", path.read_bytes(), load_module) for name, path in stored.items()]
    plan = yaml.safe_dump(settings, sort_keys=False).encode()
    return {"files": files, "models": [*models, Kind("plan.yaml", plan, read_plan, True)]}


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ("files", 140),
        ("models", 9),
        pytest.param("files", 600, marks=pytest.mark.slow),
        pytest.param("models", 100, marks=pytest.mark.slow),
    ],
)
def test_damaged_files_are_refused_in_one_line(what, count, kinds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    faults = {}
    for number in range(count):
        kind, rng = kinds[what][number % len(kinds[what])], random.Random(f"{number} {what}")
        path = tmp_path / f"{number}_{kind.name}"
        path.write_bytes(mutated(kind.good, rng, kind.text))
        if fault := fault_of(kind, path):
            faults[path.name] = fault
    assert faults == {}
    assert not (tmp_path / "executed").exists()


def test_nothing_that_is_unpickled_or_constructed_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"calosim": Trap()}, "evil.ckpt")
    with zipfile.ZipFile("evil.npz", "w") as archive:
        stream = io.BytesIO()
        np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)
        archive.writestr("arr_0.npy", stream.getvalue())
    Path("evil.yaml").write_text('trainings: !!python/object/apply:os.system ["touch executed"]')
    for use, name in ((load_module, "evil.ckpt"), (read, "evil.npz"), (read_npz, "evil.npz"), (Study, "evil.yaml")):
        with pytest.raises(ValueError, match=re.escape(name)) as caught:
            use(name)
        assert "\n" not in str(caught.value)
    assert not Path("executed").exists()
