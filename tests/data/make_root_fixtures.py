"""Showers as other programs keep them: files that ROOT itself wrote, and what they hold.

``python tests/data/make_root_fixtures.py`` makes ``tests/data/root`` anew, with PyROOT (``pip install root``; made with
6.40). The tests read the files and compare them with :func:`showers`, without ROOT.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "root"

#: O2's members, in their order (AliceO2, Detectors/ZDC/simulation/include/ZDCSimulation/SpatialPhotonResponse.h).
O2_CLASSES = """
#include <vector>
#include <utility>
#include "TParticle.h"
#include "TRef.h"
#include "TTree.h"
namespace o2::zdc {
class SpatialPhotonResponse {
 public:
  double mLxOfCell = 0., mLyOfCell = 0., mInvLxOfCell = 0., mInvLyOfCell = 0., mLowerX = 0., mLowerY = 0.;
  int mNx = 0, mNy = 0, mPhotonSum = 0, mDetectorID = -1;
  float mTime = 0.;
  std::vector<std::vector<int>> mImageData;
};
}
using Pair = std::pair<TParticle, std::pair<o2::zdc::SpatialPhotonResponse, o2::zdc::SpatialPhotonResponse>>;
std::vector<Pair> images;
void branch(TTree& tree, int split) { tree.Branch("ZDCResponseImage", &images, 32000, split); }
void add(int pdg, const double* p, const int* zn, const int* zp) {
  auto& [particle, both] = images.emplace_back();
  particle = TParticle(pdg, 1, -1, -1, -1, -1, p[4], p[5], p[6], p[0], p[1], p[2], p[3], 1e-7);
  auto fill = [](auto& image, const int* n, int nx, int ny) {
    image.mNx = nx, image.mNy = ny, image.mDetectorID = nx == 44 ? 1 : 2;
    for (int x = 0; x < nx; ++x) {
      image.mImageData.emplace_back(n + x * ny, n + (x + 1) * ny);
      for (int v : image.mImageData.back()) image.mPhotonSum += v;
    }
  };
  fill(both.first, zn, 44, 44);
  fill(both.second, zp, 56, 30);
}
void refer(int i) { TRef(&images[i].first); }  // which makes an object two bytes longer
#ifdef __CLING__
#pragma link C++ class o2::zdc::SpatialPhotonResponse+;
#pragma link C++ class std::pair<o2::zdc::SpatialPhotonResponse, o2::zdc::SpatialPhotonResponse>+;
#pragma link C++ class Pair+;
#pragma link C++ class std::vector<Pair>+;
#endif
"""

#: Particles of the events: some events have none.
EVENTS = (0, 3, 1, 0, 4, 2, 0)
ROWS = sum(EVENTS)

#: Our names, and those of a physicist's own tree, whose vertex and momentum are objects.
OURS = {n: n for n in ("energy", "vx", "vy", "vz", "px", "py", "pz", "mass", "charge", "pdg", "response")}
TREE, COLUMNS = "events/tracks", {
    "energy": "E", "vx": "v.fX", "vy": "v.fY", "vz": "v.fZ", "px": "p.fX", "py": "p.fY", "pz": "p.fZ",
    "mass": "m", "charge": "q", "pdg": "code", "response": "cells",
}  # fmt: skip

SHAPES = {"zn": (44, 44), "zp": (56, 30), "focal_h": (30, 30)}

#: Branches that hold images, by the file's name.
FORMS = {
    "fixed": "int[N]",
    "vector": "std::vector<int>",
    "nested": "std::vector<std::vector<int>>",
    "rvec": "ROOT::RVec<int>",
    "rows": "int[nx][NY]",
}

_PARTICLES = {22: (0.0, 0.0), 2112: (939.56542, 0.0), 3122: (1115.683, 0.0), 211: (139.57039, 1.0)}


def showers(detector: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, 9), PDG codes (N,) and images (N, nx, ny) that the files hold; one image is empty, one has a large pixel."""
    rng = np.random.default_rng(sum(map(ord, detector)))
    pdg = rng.choice(list(_PARTICLES), ROWS).astype(np.int32)
    mass, charge = np.array([_PARTICLES[int(code)] for code in pdg]).T
    vertex, momentum = rng.normal(0, 1e-3, (ROWS, 3)), rng.normal(0, 0.3, (ROWS, 3))
    momentum[:, 2] = rng.uniform(100, 2000, ROWS)
    energy = np.sqrt(np.square(momentum).sum(1) + np.square(mass / 1000))
    images = np.zeros((ROWS, *SHAPES[detector]), np.int32)
    for image in images:
        x, y = (rng.integers(0, n, 30) for n in image.shape)
        np.add.at(image, (x, y), rng.integers(1, 40, 30))
    images[1], images[2, 3, 4] = 0, 50_000
    return np.column_stack([energy, vertex, momentum, mass, charge]), pdg, images


def _o2sim(ROOT, name: str, split: int, compression: int, event: int = 0) -> None:
    """A file of O2's simulation: a vector of pairs an event, in several baskets."""
    particles, pdg, zn = showers("zn")
    zp = showers("zp")[2].copy()
    zp[[1, 3]] = 0  # the first leaves no light anywhere
    file = ROOT.TFile(f"{name}.root", "RECREATE", "", compression)
    tree = ROOT.TTree("o2sim", "o2sim")
    ROOT.branch(tree, split)
    for number in EVENTS:
        ROOT.images.clear()
        for row in range(event, event + number):
            ROOT.add(int(pdg[row]), particles[row].copy(), zn[row].copy(), zp[row].copy())
        if number > 1 and split and compression == 505:
            ROOT.refer(1)
        event += number
        tree.Fill()
        if event in (4, 8):
            tree.FlushBaskets()
    tree.Write()
    file.Close()


def _tree(ROOT, name: str, detector: str, form: str, tree: str = "showers", columns: dict[str, str] = OURS) -> None:
    """A tree that a loop fills, with images of a form; its detector is told by a TNamed where the file is named for it."""
    particles, pdg, images = showers(detector)
    nx, ny = SHAPES[detector]
    file = ROOT.TFile(f"{name}.root", "RECREATE")
    folder, _, title = tree.rpartition("/")
    if folder:
        file.mkdir(folder).cd()
    made = ROOT.TTree(title, title)
    values = dict(zip(columns, (*particles.T, pdg), strict=False))
    numbers = {n: np.zeros(1, v.dtype) for n, v in values.items() if "." not in columns[n]}
    for n, number in numbers.items():
        made.Branch(columns[n], number, f"{columns[n]}/{'I' if n == 'pdg' else 'D'}")
    vectors = {n.partition(".")[0]: ROOT.TVector3() for n in columns.values() if "." in n}
    for n, vector in vectors.items():
        made.Branch(n, vector)
    cells, count, flat = columns["response"], np.array([nx], np.int32), np.zeros(nx * ny, np.int32)
    kinds = {"vector": ROOT.std.vector["int"], "rvec": ROOT.RVec["int"], "nested": ROOT.std.vector["std::vector<int>"]}
    if form in kinds:
        held = kinds[form]()
        made.Branch(cells, held)
    else:
        made.Branch("nx", count, "nx/I")
        made.Branch(cells, flat, f"{cells}[{nx * ny}]/I" if form == "fixed" else f"{cells}[nx][{ny}]/I")
    for row in range(ROWS):
        for n, number in numbers.items():
            number[0] = values[n][row]
        for n, vector in vectors.items():
            vector.SetXYZ(*particles[row, slice(1, 4) if n == "v" else slice(4, 7)])
        flat[:] = images[row].ravel()
        if form in kinds:
            held.clear()
            for part in images[row].tolist() if form == "nested" else flat.tolist():
                held.push_back(part)
        made.Fill()
    made.Write()
    if name == f"fixed-{detector}":
        file.cd()
        ROOT.TNamed("detector", detector).Write()
    file.Close()


def _snapshots(ROOT, ours: str) -> None:
    """RDataFrame's copies of a file of ours: as a TTree and as an RNTuple."""
    frame = ROOT.RDataFrame("showers", ours)
    options = ROOT.RDF.RSnapshotOptions()
    frame.Snapshot("showers", "snapshot.root", "", options)
    options.fOutputFormat = ROOT.RDF.ESnapshotOutputFormat.kRNTuple
    frame.Snapshot("showers", "rntuple.root", "", options)


def main() -> None:
    """Writes all files."""
    import ROOT

    from calosim.data import Showers, write

    FOLDER.mkdir(exist_ok=True)
    os.chdir(FOLDER)  # a file of ROOT holds the name by which it was opened
    ROOT.gSystem.Load("libEG")  # of TParticle
    compiled = (
        tempfile.TemporaryDirectory()
    )  # with dictionaries, as O2's are; of interpreted classes ROOT writes no vectors
    Path(compiled.name, "o2_classes.C").write_text(O2_CLASSES)
    ROOT.gROOT.LoadMacro(f"{compiled.name}/o2_classes.C+")
    default, lz4, zstd, none = 101, 404, 505, 0
    for split in (0, 99):
        for name, compression in {"default": default, "lz4": lz4, "zstd": zstd, "none": none}.items():
            if split or name == "default":
                _o2sim(ROOT, f"o2sim-split{split}-{name}", split, compression)
    for form in FORMS:
        _tree(ROOT, form, "zn", form)
    for detector in SHAPES:
        _tree(ROOT, f"fixed-{detector}", detector, "fixed")
    _tree(ROOT, "columns", "zn", "vector", TREE, COLUMNS)
    write(f"{compiled.name}/calosim.root", Showers(*showers("zn"), "zn"))
    _snapshots(ROOT, f"{compiled.name}/calosim.root")


if __name__ == "__main__":
    main()
