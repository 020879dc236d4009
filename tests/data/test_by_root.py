"""Trees of showers that ROOT wrote: copies by RDataFrame, loops of physicists, every kind of branch; and ours, read by ROOT."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from calosim.__main__ import main
from calosim.data import Showers, read, read_primaries, write
from calosim.data.datamodule import RootDataModule
from calosim.data.reading import checked_pieces, sources
from calosim.data.root import BASKET, Names

FORMS = ["snapshot", "rntuple", "fixed", "vector", "nested", "rvec", "rows"]


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_branch(form, by_root, check_equal, join):
    path, expected = by_root.FOLDER / f"{form}.root", Showers(*by_root.showers("zn"), "zn")
    check_equal(read(path), expected)
    pieces = [piece for source in sources(path) for piece in checked_pieces(source, 4)]
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    check_equal(join(pieces), expected)
    particles, pdg = read_primaries(path)
    np.testing.assert_array_equal(particles, expected.particles)
    np.testing.assert_array_equal(pdg, expected.pdg)


@pytest.mark.parametrize("detector", ["zn", "zp", "focal_h"])
def test_flat_images_and_a_named_detector(detector, by_root, check_equal):
    path = by_root.FOLDER / f"fixed-{detector}.root"
    for wanted in (None, detector):
        check_equal(read(path, wanted), Showers(*by_root.showers(detector), detector))
    other = "zp" if detector == "zn" else "zn"
    with pytest.raises(ValueError, match=r"holds .* responses; expected"):
        read(path, other)


def test_other_names(by_root, tmp_path, check_equal, capsys):
    """Of the tree, which is in a folder, and of branches, of which vertex and momentum are objects."""
    path, expected = by_root.FOLDER / "columns.root", Showers(*by_root.showers("zn"), "zn")
    names = {"tree": by_root.TREE, "columns": by_root.COLUMNS}
    check_equal(read(path, **names), expected)
    columns = "{" + ", ".join(f"{ours}: {theirs}" for ours, theirs in by_root.COLUMNS.items()) + "}"
    out = tmp_path / "out.root"
    assert (
        main(["convert", "--source", str(path), "--out", str(out), "--tree", by_root.TREE, "--columns", columns]) == 0
    )
    check_equal(read(out), expected)
    capsys.readouterr()
    # The mass and the charge follow from the PDG code where they have no branch.
    some = {ours: theirs for ours, theirs in by_root.COLUMNS.items() if ours not in ("mass", "charge")}
    check_equal(read(path, tree=by_root.TREE, columns=some), expected, 1e-7)

    data = RootDataModule(str(path), cache_dir=str(tmp_path / "cache"), min_photons=0, **names)
    data.setup()
    assert sum(len(data.rows(split)) for split in ("train", "val", "test")) == len(expected)
    swapped = by_root.COLUMNS | {"vx": "v.fY", "vy": "v.fX"}
    other = RootDataModule(str(path), cache_dir=str(tmp_path / "cache"), tree=by_root.TREE, columns=swapped)
    other.setup()
    np.testing.assert_array_equal(other.arrays["particles"][:, 1], data.arrays["particles"][:, 2])


@pytest.mark.parametrize(
    ("form", "changed", "said"),
    [
        ("columns", {"tree": None}, "has no tree 'showers'; found 'events', 'events/tracks' .*--tree"),
        ("columns", {"tree": "events"}, "'events' is a TDirectory; expected a TTree or an RNTuple"),
        (
            "columns",
            {"columns": {"energy": "E"}},
            "has no branch 'vx'; expected energy, .*, or what they are called in --columns",
        ),
        ("columns", {"energy": "energies"}, "has no branch 'energies'"),
        ("columns", {"px": "p.fQ"}, "branch 'p' has no member 'fQ'; found fX, fY, fZ"),
        ("columns", {"px": "p"}, "branch 'p' holds TVector3; expected numbers"),
        ("columns", {"px": "E.x"}, "branch 'E' has no member 'x'; found none"),
        ("columns", {"energy": "cells"}, r"branch 'cells' has entries of shape \(1936,\); expected one number"),
        ("columns", {"response": "E"}, r"images of shape \(\) fit no detector"),
        ("columns", {"engery": "E"}, "columns: unknown column 'engery'; expected some of energy"),
    ],
)
def test_what_cannot_be_read_is_refused(form, changed, said, by_root):
    names = {"tree": by_root.TREE, "columns": by_root.COLUMNS}
    names = names | changed if set(changed) <= set(names) else names | {"columns": names["columns"] | changed}
    with pytest.raises(ValueError, match=said):
        read(by_root.FOLDER / f"{form}.root", **names)


def test_images_of_no_detector_are_refused(tmp_path, by_root):
    particles, pdg, images = by_root.showers("zn")
    columns = dict(zip(("energy", "vx", "vy", "vz", "px", "py", "pz"), particles.T, strict=False)) | {"pdg": pdg}
    ragged = ak.unflatten(np.ones(len(pdg) * 1936, np.int32), [1936, 1900, 1972, *[1936] * (len(pdg) - 3)])
    for response, said in (
        (images.transpose(0, 2, 1)[:, :, :40], r"images of shape \(44, 40\) fit no detector"),
        (ragged, "expected as many numbers in each entry"),
    ):
        kinds = {name: v.dtype for name, v in columns.items()}
        kind = "var * int32" if isinstance(response, ak.Array) else np.dtype((response.dtype, response.shape[1:]))
        with uproot.recreate(tmp_path / "a.root") as file:
            file.mktree("showers", kinds | {"response": kind}).extend(columns | {"response": response})
        with pytest.raises(ValueError, match=said):
            read(tmp_path / "a.root")


def test_names_of_members_that_several_branches_have(tmp_path):
    """A short name stands for a branch only where there is one of it; the path tells them apart."""
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("t", {"p.x": np.float64, "q.x": np.float64}).extend({"p.x": np.ones(2), "q.x": np.zeros(2)})
    from calosim.data.root import open_tree

    with open_tree(tmp_path / "a.root", Names("t", {"px": "p.x", "py": "q.x", "pz": "x"})) as tree:
        assert tree.read(["px", "py"], 0, 2)["py"].tolist() == [0, 0]
        assert "pz" not in tree


def test_our_files_are_several_clusters(tmp_path, make):
    """ROOT hands clusters to its threads; where they begin, baskets do."""
    showers = make(3 * BASKET)
    write(tmp_path / "a.root", showers)
    with uproot.open(tmp_path / "a.root") as file:
        cluster = file["showers"].member("fAutoFlush")
        assert cluster > 0
        assert {0, cluster} <= set(file["showers"]["response"].entry_offsets)
    ROOT = pytest.importorskip("ROOT")
    iterator = ROOT.TFile.Open(str(tmp_path / "a.root")).Get("showers").GetClusterIterator(0)
    assert [iterator.Next(), iterator.Next()] == [0, cluster]


def test_the_fixtures_are_what_ROOT_writes():
    folder = Path(__file__).parents[1] / "data" / "root"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1e6
    for path in folder.glob("*.root"):
        with uproot.open(path) as file:
            assert file.file.fVersion % 1_000_000 >= 64000, f"{path.name}: expected a file of ROOT 6.40"
