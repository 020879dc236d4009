"""The calibration's table says what is published, what comes out, and whether it fits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from calosim.montecarlo.calibration import (
    BLOCKS,
    Target,
    calibrate,
    main,
    measured,
    over_seeds,
    relative,
    survival_targets,
    to_markdown,
    to_text,
)

#: Rows of the table by group.
ROWS = {
    "type mix, %": 6,
    "images": 6,
    "direct hits, % of kept": 5,
    "feature means": 9,
    "feature widths": 9,
    "responses per input, relative to γ": 5,
    "inputs, relative to γ": 5,
    "diversity": 6,
    "neutrons on the face": 20,
    "photons/GeV on the face": 5,
    "γ of 13 GeV": 6,
    "parametrization (fastsimZDC)": 10,
    "survival to 112.6 m": 12,
}


TARGETS = [
    Target("a", "one", "1", 1.0, 0.1, (0.5, 1.5)),
    Target("a", "two", "2", 9.0, band=(1.5, 2.5)),
    Target("b", "three", "3", 3.0, note="a remark"),
]


def test_verdicts_and_tables():
    assert [t.verdict for t in TARGETS] == ["inside", "MISSED", "shown"]
    for table in (to_text(TARGETS), to_markdown(TARGETS)):
        assert all(t.name in table and t.note in table for t in TARGETS)
        assert "1 inside their band, 1 missed, 1 shown" in table


def test_errors_are_those_of_means_over_blocks():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 1.0, 4000)
    target = measured("a", "one", "3", lambda m: values[m].mean(), np.arange(4000) % BLOCKS, relative(3.0, 0.1))
    assert target.ours == values.mean()
    assert target.error == pytest.approx(1 / np.sqrt(4000), rel=0.5)  # from 20 blocks
    assert target.band == pytest.approx((2.7, 3.3))
    empty = measured("a", "none", "3", lambda m: values[m & (values > 9)].mean(), np.arange(4000) % BLOCKS, None)
    assert np.isnan(empty.ours)
    assert np.isnan(empty.error)


def test_the_command_prints_and_writes_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("calosim.montecarlo.calibration.over_seeds", lambda seeds, first, scale, workers: TARGETS)
    main(["--out", str(tmp_path / "new" / "table.md")])
    assert capsys.readouterr().out == to_text(TARGETS) + "\n"
    assert (tmp_path / "new" / "table.md").read_text() == to_markdown(TARGETS)


def test_the_mean_over_seeds_is_judged_with_its_error(monkeypatch):
    values = {1: 0.4, 2: 1.0, 3: 1.6, 4: np.nan}
    made = lambda seed, scale, workers: [Target("a", "one", "1", values[seed], 0.5, (0.8, 1.2))]  # noqa: E731
    monkeypatch.setattr("calosim.montecarlo.calibration.calibrate", made)
    (mean,) = over_seeds(4)
    assert mean.ours == pytest.approx(1.0)
    assert mean.error == pytest.approx(0.6 / np.sqrt(3))
    assert mean.verdict == "inside"
    assert made(1, 1, 1)[0].verdict == "MISSED"  # what one seed says is chance
    assert over_seeds(1)[0].error == 0.5
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])


def test_survival_follows_from_published_lifetimes():
    targets = survival_targets(seed=1, scale=0.2)
    assert len(targets) == ROWS["survival to 112.6 m"]
    assert {t.verdict for t in targets} == {"inside"}


#: Targets the toy is known to miss, and means so small that their bands are no wider than two statistical errors.
KNOWN_MISSES = {"zero pixels of ZP, %", "lit pixels at 698 photons", "px", "py", "pz"}


@pytest.mark.slow
def test_calibration():
    targets = calibrate(workers=2)
    assert Counter(t.group for t in targets) == ROWS
    missed = [t for t in targets if t.verdict == "MISSED"]
    assert {t.name for t in missed} <= KNOWN_MISSES
    assert all(t.note for t in missed if t.name not in ("px", "py", "pz"))
