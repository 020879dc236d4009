"""Peers keep photon sums and their seeds, and the benchmark trains, skips what is done, judges and tells."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from benchmarks.peers.__main__ import main
from benchmarks.peers.counts import rounded, with_sum
from benchmarks.peers.protocol import Budget
from benchmarks.peers.settings import CONFIG, Study, Try
from calosim.cli.train import resolved
from calosim.data.root import write
from calosim.io import read_csv, read_npz

PEERS = list(yaml.safe_load(CONFIG.read_text())["peers"])
#: Training time of a test: about half a second.
MINUTES = 0.01


def test_counts_have_the_sums_that_are_wanted():
    rng = np.random.default_rng(0)
    images = rng.exponential(0.3, (20, 5, 7)) * (rng.random((20, 5, 7)) < 0.5)
    images[0], images[1], images[2] = 0.0, 0.01, np.nan
    wanted = rng.integers(0, 400, 20)
    counts = with_sum(images, wanted)
    nonempty = np.nan_to_num(images).any((1, 2))
    assert np.array_equal(counts.sum((1, 2)), np.where(nonempty, wanted, 0))
    assert counts.min() >= 0
    # Nothing is lit that rounding leaves dark, unless there is nothing else; whole numbers stay.
    some = (images >= 0.5).any((1, 2))
    assert not counts[some][images[some] < 0.5].any()
    whole = rounded(images * 9)
    assert np.array_equal(with_sum(whole.astype(float), whole.sum((1, 2))), whole)


def test_a_schedule_rises_and_falls():
    budget = Budget(1.0, warmup=9, final=0.1)
    assert budget.rate(0) == pytest.approx(0.1, abs=1e-3)
    assert budget.rate(9) == pytest.approx(1.0, abs=1e-3)
    budget._begin -= 60
    assert budget.rate(99) == pytest.approx(0.1)
    assert not list(budget.steps())


@pytest.mark.parametrize("name", PEERS)
def test_a_peer(name, showers, tmp_path):
    entry = Study.read(CONFIG).peers[name]
    peer = entry.build(showers.geometry, entry.lrs[0])
    # Making and copying a flow of pixels takes a second or two of the time.
    assert peer.fit(showers, 0.1 if name in ("pixels", "student") else MINUTES, seed=1) > 0
    some = showers.select(slice(10))
    asked = some.particles, some.pdg, some.photon_sum
    images = peer.generate(*asked, seed=3)
    assert images.shape == some.images.shape
    assert np.issubdtype(images.dtype, np.integer)
    # The published noise removal of pixels rounds last.
    exact = name not in ("pixels", "student")
    assert np.array_equal(images.sum((1, 2)), some.photon_sum) == exact
    assert np.array_equal(images, peer.generate(*asked, seed=3))
    assert peer.generate(*(a[:1] for a in asked), seed=3).shape == images[:1].shape
    assert not np.array_equal(images, peer.generate(*asked, seed=4))
    nll = peer.nll(some)
    assert (nll is None) == (peer.nll_unit is None)
    assert nll is None or (nll.shape == (10,) and np.isfinite(nll).all())
    same, own = peer.both(*asked, seed=3)
    assert np.array_equal(same, images)
    assert (own is None) == (name not in ("gan", "flow_matching"))
    assert own is None or (own.sum((1, 2)) != some.photon_sum).any()
    peer.save(tmp_path / "weights.pt")
    again = entry.build(showers.geometry, entry.lrs[0])
    again.load(tmp_path / "weights.pt")
    assert np.array_equal(images, again.generate(*asked, seed=3))


@pytest.mark.parametrize("name", ["splits", "pixels"])
def test_settings_are_those_of_the_command(name, showers):
    peer = Study.read(CONFIG).peers[name].build(showers.geometry, 1e-3)
    files = Study.read(CONFIG).peers[name].options["configs"]
    settings = resolved([word for file in files for word in ("-c", file)])
    made, wanted = peer.module.init, settings["model"]["init_args"]
    assert made["representation"].items() - {"kind": name}.items() == wanted["representation"].items()
    assert (made["flow"] and {**made["flow"], "hidden": list(made["flow"]["hidden"])}) == wanted["flow"]
    assert made["physics"] == wanted["physics"]
    assert (peer.batch_size, peer.clip) == (settings["data"]["batch_size"], settings["trainer"]["gradient_clip_val"])


@pytest.fixture
def words(root_file, make_showers, tmp_path):
    """A study of two quick peers."""
    write(tmp_path / "floor.root", make_showers(seed=0))
    options = {
        "data": root_file,
        **dict.fromkeys(("floor", "shape_floor"), tmp_path / "floor.root"),
        "out": tmp_path / "out",
        "minutes": MINUTES,
    }
    options |= {"jobs": 1, "rows": 200, "validation_rows": 20, "classifier_seeds": 1}
    return ["--peers", "gan", "vae", *[str(word) for pair in options.items() for word in ("--" + pair[0], pair[1])]]


def test_tries_are_judged(words, tmp_path):
    study = Study.read(CONFIG, out=str(tmp_path / "out"), minutes=[MINUTES], peers=["gan", "vae"])
    assert study.chosen("gan", MINUTES) is None
    study.at("gan", MINUTES, 1e-3).give_up("for a test")
    for name, lr in (("gan", 2e-4), ("vae", 1e-3), ("vae", 3e-3)):
        assert main([*words, "--one", name, str(MINUTES), str(lr)]) == 0
    assert study.chosen("gan", MINUTES) == study.at("gan", MINUTES, 2e-4)
    best = study.chosen("vae", MINUTES)
    assert best.score == min(study.at("vae", MINUTES, lr).score for lr in (1e-3, 3e-3))
    arrays = read_npz(best.folder / Try.IMAGES)
    assert len(arrays["images"]) == len(arrays["nll"]) == best.result["rows"]
    assert main([*words, "--judge"]) == 0
    lines = {line["label"]: line for line in read_csv(tmp_path / "out" / "peers.csv")}
    assert set(lines) == {
        best.folder.name,
        study.chosen("gan", MINUTES).folder.name,
        "shape_floor",
        "floor",
        "trivial",
        "damaged",
    }
    line = lines[best.folder.name]
    assert float(line["ws"]) > 0
    assert float(line["ws_low"]) < float(line["ws_high"])
    assert float(line["parameters"]) > 1000
    text = (tmp_path / "out" / "peers.md").read_text()
    assert "for a test" in text
    assert "upper bound" in text
    assert (tmp_path / "out" / "peers.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_trains_what_is_missing(words, tmp_path, capsys):
    words = [*words, "--peers", "vae"]
    assert main([*words, "--limit_minutes", "0.2"]) == 1
    assert "not started" in capsys.readouterr().err
    assert main([*words, "--jobs", "2"]) == 0
    assert capsys.readouterr().out.count("done") == 2
    assert main(words) == 0
    assert "started" not in capsys.readouterr().out
    assert main([*words, "--speed"]) == 0
    assert (tmp_path / "out" / "speed.json").exists()


def test_what_is_unknown_is_refused(words, capsys):
    assert main([*words, "--peers", "nothing"]) == 2
    assert "unknown peer 'nothing'" in capsys.readouterr().err
    assert main([*words, "--minutes", "0"]) == 2
    assert "expected positive" in capsys.readouterr().err
