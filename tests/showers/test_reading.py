"""Showers survive the way through every form of file, whole, in order and in little memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uproot

from calosim.detectors import DETECTORS
from calosim.showers.checks import validate
from calosim.showers.extract import read_table
from calosim.showers.reading import convert, iterate, read, read_primaries
from calosim.showers.record import FEATURES, Showers
from calosim.showers.root import Writer, write

#: Mass in MeV and charge in e from the PDG listings of 2024, by code: what the files must hold.
PARTICLES = {22: (0, 0), 2112: (939.5654, 0), 2212: (938.2721, 1), 3122: (1115.683, 0), -211: (139.5704, -1)}
#: The largest photon sum seen in real output, from one pion of 12 GeV.
ARTEFACT = 177_940
#: A number printed with six digits, as Extract.C does.
SIX_DIGITS = 1e-5
#: Masses of the PDG's editions differ by less, relatively.
EDITIONS = 1e-5
#: Double precision through a square and a root.
ROUNDING = 1e-12
EXAMPLES = Path(
    os.environ.get("CALOSIM_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
) / "o2_zdc_examples.csv"  # fmt: skip


def make(rows: int, detector: str = "zn", seed: int = 0, inputs: int | None = None) -> Showers:
    """Random showers, each input drawn about equally often."""
    rng = np.random.default_rng(seed)
    inputs = rows if inputs is None else inputs
    pdg = rng.choice(list(PARTICLES), inputs).astype(np.int32)
    particles = rng.normal(size=(inputs, len(FEATURES)))
    particles[:, 0] = 1 + rng.exponential(1000, inputs)
    particles[:, 7:] = [PARTICLES[int(code)] for code in pdg]
    images = rng.poisson(0.1, (rows, *DETECTORS[detector].shape)).astype(np.int16)
    chosen = rng.integers(inputs, size=rows)
    return Showers(particles[chosen], pdg[chosen], images, detector)


def join(pieces: Iterator[Showers] | list[Showers]) -> Showers:
    pieces = list(pieces)
    return Showers(
        np.concatenate([s.particles for s in pieces]),
        np.concatenate([s.pdg for s in pieces]),
        np.concatenate([s.images for s in pieces]),
        pieces[0].detector,
    )


def check_equal(got: Showers, expected: Showers, rtol: float = 0.0) -> None:
    assert got.detector == expected.detector
    np.testing.assert_allclose(got.particles, expected.particles, rtol=rtol, atol=0)
    np.testing.assert_array_equal(got.pdg, expected.pdg)
    np.testing.assert_array_equal(got.images, expected.images)
    assert (got.particles.dtype, got.pdg.dtype) == (np.float64, np.int32)


@pytest.fixture
def small_baskets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes files of a few rows go through all the code for many baskets."""
    for module in ("root", "reading"):
        monkeypatch.setattr(f"calosim.showers.{module}.BASKET", 7)


# Our ROOT form


@pytest.mark.parametrize("detector", DETECTORS)
def test_round_trip(detector: str, tmp_path: Path) -> None:
    showers = make(20, detector)
    write(tmp_path / "a.root", showers)
    got = read(tmp_path / "a.root", detector)
    check_equal(got, showers)
    assert got.images.dtype == np.int16


def test_form_of_the_file(tmp_path: Path) -> None:
    showers = make(9, "zp")
    write(tmp_path / "a.root", showers)
    with uproot.open(tmp_path / "a.root") as file:
        tree = file["showers"]
        types = {branch.name: branch.typename for branch in tree.branches}
        assert types == dict.fromkeys(FEATURES, "double") | {"pdg": "int32_t", "response": "int16_t[56][30]"}
        assert str(file["detector"]) == "zp"
        for k, name in enumerate(FEATURES):
            np.testing.assert_array_equal(tree[name].array(library="np"), showers.particles[:, k])


@pytest.mark.usefixtures("small_baskets")
@pytest.mark.parametrize("chunk", [1, 3, 7, 20, 50])
def test_pieces_do_not_matter(chunk: int, tmp_path: Path) -> None:
    showers = make(50)
    with Writer(tmp_path / "a.root", "zn") as writer:
        for first in range(0, len(showers), chunk):
            piece = join([showers.select(slice(first, first + chunk))])
            writer.extend(piece)
            piece.images[:] = 9  # the writer must not look again
    check_equal(read(tmp_path / "a.root"), showers)
    with uproot.open(tmp_path / "a.root") as file:
        assert file["showers"]["response"].num_baskets == 8  # of 7 rows, whatever the pieces were

    pieces = list(iterate(tmp_path / "a.root", rows=chunk))
    assert max(map(len, pieces)) <= chunk + 6  # whole baskets
    check_equal(join(pieces), showers)


@pytest.mark.usefixtures("small_baskets")
@pytest.mark.parametrize("row", [0, 24, 49])
def test_artefact(row: int, tmp_path: Path) -> None:
    showers = make(50)
    images = showers.images.astype(np.int64)
    images[row, 3, 4] = ARTEFACT
    showers = Showers(showers.particles, showers.pdg, images, "zn")
    write(tmp_path / "a.root", showers)
    got = read(tmp_path / "a.root")
    check_equal(got, showers)
    assert got.images.dtype == np.int32
    assert [path.name for path in tmp_path.iterdir()] == ["a.root"]


def test_foreign_root_file(tmp_path: Path) -> None:
    """Other types, no detector's name, other baskets, a colon in the file's name."""
    showers = make(50)
    path = tmp_path / "run:3.root"
    branches = {name: showers.particles[:, k] for k, name in enumerate(FEATURES)}
    branches |= {"pdg": showers.pdg.astype(np.int64), "response": showers.images.astype(np.float32)}
    with uproot.recreate(path) as file:
        types = {name: np.dtype((v.dtype, v.shape[1:])) if v.ndim > 1 else v.dtype for name, v in branches.items()}
        tree = file.mktree("showers", types | {"extra": np.float64})
        for part in (slice(0, 1), slice(1, 34), slice(34, 50)):
            tree.extend({name: values[part] for name, values in (branches | {"extra": np.ones(50)}).items()})
    got = read(path)
    check_equal(got, showers)
    assert got.images.dtype == np.int16
    check_equal(join(iterate(path, rows=10)), showers)
    assert max(map(len, iterate(path, rows=10))) <= 10


@pytest.mark.usefixtures("small_baskets")
def test_error_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    write(path, make(5))
    before = path.read_bytes()

    def interrupted() -> None:
        with Writer(path, "zn") as writer:
            writer.extend(make(30))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [100, 3_000, 30_000, 60_000])
def test_full_disk_keeps_the_old_file(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    write(path, make(5))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"a\.root: cannot be written: ") as caught:
            write(path, make(500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_and_imports(tmp_path: Path) -> None:
    """Reading takes less than twice the images; importing takes no slow library along."""
    showers = make(1000)
    with Writer(tmp_path / "a.root", "zn") as writer:
        for _ in range(40):
            writer.extend(showers)
    # Not getrusage, whose peak begins with that of the parent process.
    script = (
        "import sys; from calosim.showers.reading import read\n"
        "slow = {'uproot', 'particle', 'awkward'} & set(sys.modules)\n"
        "import uproot, particle; from pathlib import Path\n"
        "peak = lambda: 1024 * int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak(); showers = read(sys.argv[1])\n"
        "print(len(slow), len(showers), (peak() - before) / (2 * showers.images.size))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.root")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    slow, rows, ratio = done.stdout.split()
    assert (int(slow), int(rows)) == (0, 40_000)
    assert 0.9 < float(ratio) < 2


# The record


def test_inputs_are_unique_rows_in_order_of_appearance() -> None:
    showers = make(500, inputs=60)
    inputs = showers.inputs
    rows = np.column_stack([showers.particles, showers.pdg])
    _, expected = np.unique(rows, axis=0, return_inverse=True)
    pairs = np.unique(np.column_stack([inputs, expected.reshape(-1)]), axis=0)
    assert len(pairs) == expected.max() + 1 == inputs.max() + 1  # one to one
    _, first = np.unique(inputs, return_index=True)
    assert (np.diff(first) > 0).all()
    assert inputs.dtype == np.int64


def test_inputs_tell_particles_apart_but_not_zeros() -> None:
    particles = np.zeros((3, len(FEATURES)))
    particles[1, 4] = -0.0
    images = np.zeros((3, 44, 44), np.int16)
    assert Showers(particles, np.array([310, 310, 130]), images, "zn").inputs.tolist() == [0, 0, 1]


def test_validate_names_the_row() -> None:
    showers = make(5)
    validate(showers, "memory")
    showers.particles[3, 0] = -1
    with pytest.raises(ValueError, match="memory: row 3: energy is -1 GeV"):
        validate(showers, "memory")
    with pytest.raises(ValueError, match="expected ZP images"):
        validate(Showers(showers.particles, showers.pdg, showers.images, "zp"), "memory")
    with pytest.raises(ValueError, match="expected integer photon counts, got float64"):
        validate(Showers(showers.particles, showers.pdg, showers.images.astype(float), "zn"), "memory")


# npz pairs


def save_npz(folder: Path, showers: Showers, columns: int, dtype: type, stem: str = "data_nonrandom") -> list[Path]:
    table = np.column_stack([showers.particles, showers.pdg])[:, :columns]
    paths = [folder / f"{stem}_particles.npz", folder / f"{stem}_responses.npz"]
    np.savez(paths[0], table)
    np.savez_compressed(paths[1], showers.images.astype(dtype))
    return paths


@pytest.mark.parametrize("detector", ["zn", "zp"])
@pytest.mark.parametrize("columns", [9, 10])
@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int32])
def test_npz_pair(detector: str, columns: int, dtype: type, tmp_path: Path) -> None:
    showers = make(30, detector)
    first, second = save_npz(tmp_path, showers, columns, dtype)
    for given in (first, second, [second, first]):
        check_equal(read(given), showers)
    check_equal(join(iterate(first, rows=7)), showers)


def test_npz_choice_between_particles(tmp_path: Path) -> None:
    showers = make(3)
    showers.particles[:, 7:] = (497.614, 0)
    first, _ = save_npz(tmp_path, showers, 9, np.int16)
    for code in (310, 130):
        assert read(first, prefer=[code]).pdg.tolist() == [code] * 3


# Text of Extract.C


def save_text(folder: Path, showers: dict[str, Showers], momenta: bool = True) -> Path:
    """What Extract.C prints: tracks in pairs of rows for N and P, and images of both."""
    header = "Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"
    if not momenta:
        header = "Detector,Event,Counter,StatusCode,Pdg,Energy,Vx,Vy,Vz,PhotonSum"
    lines = [header]
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


@pytest.mark.usefixtures("small_baskets")
@pytest.mark.parametrize("detector", ["zn", "zp"])
def test_text(detector: str, tmp_path: Path) -> None:
    both = {"N": make(20, "zn"), "P": make(20, "zp")}
    path = save_text(tmp_path, both)
    expected = both["N" if detector == "zn" else "P"]
    images = [tmp_path / "neutron_image.txt", tmp_path / "proton_image.txt"]
    for given in (path, [path, *images], [images[detector == "zp"], path]):
        check_equal(read(given, detector), expected, SIX_DIGITS)
    with pytest.raises(ValueError, match="expected a choice of detector, zn or zp"):
        read(path)
    images[0].unlink()
    assert read(path).detector == "zp"


def test_text_without_momenta(tmp_path: Path) -> None:
    showers = make(20)
    path = save_text(tmp_path, {"N": showers, "P": make(20, "zp")}, momenta=False)
    got = read(path, "zn", assume_beam_direction=True)
    energy, px, py, pz, mass = got.particles[:, [0, 4, 5, 6, 7]].T
    on_shell = energy > mass / 1000
    assert on_shell.sum() > 10
    np.testing.assert_allclose(np.hypot(pz, mass / 1000)[on_shell], energy[on_shell], rtol=ROUNDING)
    assert not px.any()
    assert not py.any()
    np.testing.assert_array_equal(np.sign(pz[on_shell]), np.sign(got.particles[on_shell, 3]))
    np.testing.assert_array_equal(got.images, showers.images)


@pytest.mark.skipif(not EXAMPLES.exists(), reason="the examples of real O2 output are not here")
def test_real_output_of_o2(tmp_path: Path) -> None:
    table = read_table(EXAMPLES)
    assert table.dtype.names == ("Detector", "Pdg", "Energy", "Vx", "Vy", "Vz", "PhotonSum")
    neutron, proton = table[0::2], table[1::2]
    assert set(neutron["Detector"]) == {"N"}
    assert set(proton["Detector"]) == {"P"}
    for name in ("Pdg", "Energy", "Vx", "Vy", "Vz"):
        np.testing.assert_array_equal(neutron[name], proton[name])
    assert proton["PhotonSum"].max() == ARTEFACT

    # The images are not public: put all photons of a track into one pixel.
    images = np.zeros((len(proton), 56, 30), np.int64)
    images[:, 28, 15] = proton["PhotonSum"]
    lines = (" ".join(map(str, line)) + " \n" for line in images.reshape(-1, 30).tolist())
    (tmp_path / "proton_image.txt").write_text("".join(lines))
    source, out = [str(EXAMPLES), str(tmp_path / "proton_image.txt")], str(tmp_path / "zp.root")
    convert(source, out, detector="zp", assume_beam_direction=True)
    got = read(out)
    np.testing.assert_array_equal(got.photon_sum, proton["PhotonSum"])
    np.testing.assert_array_equal(got.pdg, proton["Pdg"])
    energy, pz, mass = got.particles[:, [0, 6, 7]].T
    assert (energy >= 0.99 * mass / 1000).all()  # masses of the PDG codes fit the energies
    assert (np.abs(pz) <= energy).all()
    charge = got.particles[:, 8]
    for code, sign in ((211, 1), (-211, -1), (11, -1), (2212, 1), (22, 0), (2112, 0), (1000010030, 1)):
        assert set(charge[got.pdg == code]) == {sign}


# Primaries


def test_primaries_from_root_and_csv(tmp_path: Path) -> None:
    showers = make(30)
    write(tmp_path / "a.root", showers)
    names = [*FEATURES, "pdg"]
    table = np.column_stack([showers.particles, showers.pdg])
    order = np.random.default_rng(3).permutation(len(names))
    short = [k for k in order if names[k] not in ("mass", "charge")]
    for file, chosen in (("all.csv", order), ("short.csv", short)):
        rows = [",".join(repr(float(r[k])) if k < 9 else str(int(r[k])) for k in chosen) for r in table]
        (tmp_path / file).write_text("\n".join([",".join(names[k] for k in chosen), *rows]) + "\n")
    for file, rtol in (("a.root", 0), ("all.csv", 0), ("short.csv", EDITIONS)):
        particles, pdg = read_primaries(tmp_path / file)
        np.testing.assert_allclose(particles, showers.particles, rtol=rtol, atol=0)
        np.testing.assert_array_equal(pdg, showers.pdg)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("energy,vx,vy,vz,px,py,pdg\n", "no column 'pz'"),
        ("energy,vx,vy,vz,px,py,pz,mass,pdg\n", "no column 'charge'"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n", "holds no rows"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,22\n1,0,0,0,0,0,1\n", "line 3: expected 8 fields, got 7"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,22.5\n", "line 2: pdg is '22.5'; expected a whole number"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,2" + 30 * "0" + "\n", "expected a whole number"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n-1,0,0,0,0,0,1,22\n", "row 0: energy is -1 GeV"),
    ],
)
def test_bad_primaries(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=says):
        read_primaries(tmp_path / "a.csv")


# Conversion


def test_convert_joins_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [make(20, seed=seed) for seed in range(3)]
    write(tmp_path / "a.root", parts[0])
    pair = save_npz(tmp_path, parts[1], 10, np.float32)
    text = save_text(tmp_path, {"N": parts[2], "P": make(20, "zp")})
    out = tmp_path / "new" / "folder" / "all.root"
    convert([str(text), str(pair[0]), str(tmp_path / "a.root")], str(out), detector="zn")
    check_equal(read(out), join(parts), SIX_DIGITS)
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{out}: 60 ZN responses of 5 particle types")
    assert shown.out.count("\n") == 1
    assert shown.err == ""
