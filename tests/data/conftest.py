"""What tests of several forms of files share: random showers, files of them, and files with one fault each."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from calosim.__main__ import main
from calosim.data import FEATURES, Showers, convert
from calosim.detectors import DETECTORS
from calosim.options import Convert

#: Mass in MeV and charge in e from the PDG listings of 2024, by code: what the files must hold.
PARTICLES = {22: (0, 0), 2112: (939.5654, 0), 2212: (938.2721, 1), 3122: (1115.683, 0), -211: (139.5704, -1)}
OLDER = "Detector,Event,Counter,StatusCode,Pdg,Energy,Vx,Vy,Vz,PhotonSum"
NEWER = "Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"


def _make(rows: int, detector: str = "zn", seed: int = 0, primaries: int | None = None) -> Showers:
    """Random showers, each primary drawn about equally often."""
    rng = np.random.default_rng(seed)
    primaries = rows if primaries is None else primaries
    pdg = rng.choice(list(PARTICLES), primaries).astype(np.int32)
    particles = rng.normal(size=(primaries, len(FEATURES)))
    particles[:, 6] = rng.choice([-1, 1], primaries) * (1 + rng.exponential(1000, primaries))
    particles[:, 7:] = [PARTICLES[int(code)] for code in pdg]
    particles[:, 0] = np.sqrt(np.square(particles[:, 4:7]).sum(1) + np.square(particles[:, 7] / 1000))
    images = rng.poisson(0.1, (rows, *DETECTORS[detector].shape)).astype(np.int16)
    chosen = rng.integers(primaries, size=rows)
    return Showers(particles[chosen], pdg[chosen], images, detector)


def _join(pieces: Iterable[Showers]) -> Showers:
    pieces = list(pieces)
    arrays = (np.concatenate([getattr(s, name) for s in pieces]) for name in ("particles", "pdg", "images"))
    return Showers(*arrays, pieces[0].detector)


def _check_equal(got: Showers, expected: Showers, rtol: float = 0.0) -> None:
    assert got.detector == expected.detector
    np.testing.assert_allclose(got.particles, expected.particles, rtol=rtol, atol=0)
    np.testing.assert_array_equal(got.pdg, expected.pdg)
    np.testing.assert_array_equal(got.images, expected.images)
    assert (got.particles.dtype, got.pdg.dtype) == (np.float64, np.int32)


def _save_npz(folder: Path, showers: Showers, columns: int = 10, dtype: type = np.int16, stem: str = "a") -> list[Path]:
    table = np.column_stack([showers.particles, showers.pdg])[:, :columns]
    paths = [folder / f"{stem}_particles.npz", folder / f"{stem}_responses.npz"]
    np.savez(paths[0], table)
    np.savez_compressed(paths[1], showers.images.astype(dtype))
    return paths


def _save_text(folder: Path, showers: dict[str, Showers], momenta: bool = True) -> Path:
    """What Extract.C prints: tracks in pairs of rows for N and P, and images of both."""
    lines = [NEWER if momenta else OLDER]
    for row in range(len(showers["N"])):
        for letter, each in showers.items():
            p = [f"{value:.6g}" for value in each.particles[row]]
            front = [str(each.pdg[row])] if momenta else ["0", str(row), "999", str(each.pdg[row])]
            lines.append(",".join([letter, *front, *p[: 7 if momenta else 4], str(each.photon_sum[row])]))
    (folder / "non_zero_examples.txt").write_text("\n".join(lines) + "\n")
    for letter, name in (("N", "neutron_image.txt"), ("P", "proton_image.txt")):
        pixels = showers[letter].images.reshape(-1, showers[letter].images.shape[-1])
        (folder / name).write_text("".join(" ".join(map(str, line)) + " \n" for line in pixels.tolist()))
    return folder / "non_zero_examples.txt"


@pytest.fixture(scope="session")
def make() -> Callable[..., Showers]:
    """Makes random showers: ``make(rows, detector="zn", seed=0, primaries=None)``."""
    return _make


@pytest.fixture(scope="session")
def join() -> Callable[..., Showers]:
    """One record of several: ``join(pieces)``."""
    return _join


@pytest.fixture(scope="session")
def check_equal() -> Callable[..., None]:
    """Compares records: ``check_equal(got, expected, rtol=0)``."""
    return _check_equal


@pytest.fixture(scope="session")
def save_npz() -> Callable[..., list[Path]]:
    """Writes a pair of npz files: ``save_npz(folder, showers, columns=10, dtype=np.int16, stem="a")``."""
    return _save_npz


@pytest.fixture(scope="session")
def save_text() -> Callable[..., Path]:
    """Writes what Extract.C prints: ``save_text(folder, {"N": showers, "P": showers}, momenta=True)`` returns the table."""
    return _save_text


@pytest.fixture
def small_baskets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes files of a few rows go through all the code for many baskets."""
    for module in ("root", "reading"):
        monkeypatch.setattr(f"calosim.data.{module}.BASKET", 7)


class Spoiler:
    """Makes files of a small good data set, with one fault each; paths come as a list, as the command takes them."""

    rows, shape = 4, (44, 44)

    def __init__(self, folder: Path):
        self.folder = folder
        neutron = {"energy": 3.5893, "mass": 939.5654, "charge": 0.0}  # of 2 GeV/c along each axis
        images = np.zeros((self.rows, *self.shape), np.int16)
        images[:, 20, 22] = 17
        self.columns = {name: np.full(self.rows, neutron.get(name, 2.0)) for name in FEATURES}
        self.columns |= {"pdg": np.full(self.rows, 2112, np.int32), "response": images}
        #: Features and PDG code, as in an npz file.
        self.table = np.column_stack([self.columns[name] for name in (*FEATURES, "pdg")])

    def named(self, name: str, content: bytes = b"") -> list[str]:
        (self.folder / name).write_bytes(content)
        return [str(self.folder / name)]

    def full(self, value: float, dtype: type = np.float64) -> np.ndarray:
        """A column of one value."""
        return np.full(self.rows, value, dtype)

    def column(self, name: str, row: int, value: float) -> np.ndarray:
        """A column with another value in one row."""
        values = self.columns[name].astype(np.float64)
        values[row] = value
        return values

    def pixel(self, value: float, dtype: type = np.float32) -> np.ndarray:
        """The images with another value in one pixel."""
        images = self.columns["response"].astype(dtype)
        images[2, 5, 6] = value
        return images

    def root(self, tree: str = "showers", detector: str | None = "zn", **changes: Any) -> list[str]:
        """A ROOT file with some branches changed, or left out where None."""
        branches = {name: value for name, value in (self.columns | changes).items() if value is not None}
        path = self.folder / "bad.root"
        with uproot.recreate(path) as file:
            if detector is not None:
                file["detector"] = detector
            types = {
                name: "var * int16"
                if isinstance(values, list)
                else np.dtype((values.dtype, values.shape[1:]) if values.ndim > 1 else values.dtype)
                for name, values in branches.items()
            }
            made = file.mktree(tree, types)
            if len(branches["energy"]):
                made.extend(branches)
        return [str(path)]

    def npz(self, table: Any = None, images: Any = None, key: str = "arr_0") -> list[str]:
        """A pair of npz files."""
        first, second = self.folder / "bad_particles.npz", self.folder / "bad_responses.npz"
        np.savez_compressed(first, **{key: self.table if table is None else table})
        np.savez_compressed(second, arr_0=self.columns["response"] if images is None else images)
        return [str(first), str(second)]

    def text(self, header: str = NEWER, edit: Callable[[list[str], list[str]], Any] | None = None) -> list[str]:
        """A CSV of Extract.C and its ZN images, as lists of lines that ``edit`` may change."""
        table, lines = [header], []
        for image in self.columns["response"]:
            for letter, n in (("N", image.sum()), ("P", 0)):
                values = {"Detector": letter, "Pdg": 2112, "PhotonSum": n, "Pz": -2.0, "Energy": 2.2, "Vz": -11261.2}
                table.append(",".join(str(values.get(name, 0)) for name in header.split(",")))
            lines += [" ".join(map(str, row)) + " " for row in image]
        if edit is not None:
            edit(table, lines)
        first, second = self.folder / "bad.csv", self.folder / "neutron_image.txt"
        first.write_text("\n".join(table) + "\n")
        second.write_text("\n".join(lines) + "\n")
        return [str(first), str(second)]

    def cut(self, path: str, size: int) -> list[str]:
        Path(path).write_bytes(Path(path).read_bytes()[:size])
        return [path]

    def damage(self, path: str, start: int, stop: int) -> str:
        data = bytearray(Path(path).read_bytes())
        data[start:stop] = bytes(255 - b for b in data[start:stop])
        Path(path).write_bytes(data)
        return path

    def first(self, paths: list[str]) -> list[str]:
        """The first file, without its partner."""
        Path(paths[1]).unlink()
        return paths[:1]


@pytest.fixture
def spoil(tmp_path: Path) -> Spoiler:
    """Makes files with one fault each, in the test's folder."""
    return Spoiler(tmp_path)


@pytest.fixture
def refused(spoil: Spoiler, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Checks that a bad file gets one clear line: ``refused(make, says, out="out.root", **options)``.

    ``make`` gets a :class:`Spoiler` and returns the files; ``says`` is what the message must hold.
    """

    def check(make: Callable[[Spoiler], list[str]], *says: str, out: str = "out.root", **options: Any) -> None:
        source, target = make(spoil), spoil.folder / out
        before = {path: path.read_bytes() for path in spoil.folder.iterdir() if path.is_file()}
        with pytest.raises(ValueError) as caught:
            convert(Convert(source, str(target), **options))
        message = str(caught.value)
        assert "\n" not in message
        for part in says:
            assert part in message
        capsys.readouterr()
        arguments = [f"--{key}={value}" for key, value in options.items()]
        listed = source[0] if len(source) == 1 else f"[{', '.join(source)}]"
        assert main(["convert", "--source", listed, "--out", str(target), *arguments]) == 2
        shown = capsys.readouterr()
        assert shown.err == f"calosim: error: {message}\n"
        assert shown.out == ""
        # Nothing was written, nothing was left behind and nothing that was there has changed.
        assert {path: path.read_bytes() for path in spoil.folder.iterdir() if path.is_file()} == before

    return check


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Finds a file of real detector output, which does not come with calosim; the test is skipped where it is missing."""
    folder = Path(os.environ.get("CALOSIM_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"{name} is not here")
        return folder / name

    return find


@pytest.fixture(scope="session")
def by_root() -> Any:
    """The module that made the files in ``tests/data/root``, which knows what they hold."""
    path = Path(__file__).parents[1] / "data" / "make_root_fixtures.py"
    spec = importlib.util.spec_from_file_location("make_root_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
