"""The C2ST in an evaluation: of the samples that are judged anyway, beside controls, or a line why there is none."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from calosim import FastSimulator
from calosim.data.record import Showers
from calosim.evaluation.evaluate import as_csv, as_markdown, evaluate
from calosim.evaluation.references import floor_of_simulation, floor_of_sums
from calosim.evaluation.stored import TITLES
from calosim.evaluation.tests import C2ST, CONTROLS, LIKELIHOOD, PRIMARY, c2st_with_controls, compare_likelihoods
from calosim.io import read_json, read_npz
from calosim.metrics.c2st import C2STSettings
from calosim.models.student import Student
from calosim.options import ClassifierOptions, Evaluate, FloorOptions, Models, Protocol
from calosim.particles import particle_code

FEW = Protocol(runs=1, responses=2, rows=40)
ONE = ClassifierOptions(classifier_seeds=1)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("calosim.evaluation.evaluate._draw", lambda *_: [])


@pytest.fixture(scope="module")
def again(showers):
    """Makes other responses to the same primaries: ``again(seed)``."""
    return lambda seed: np.random.default_rng(seed).poisson(showers.images).astype(np.int32)


@pytest.fixture(scope="module")
def found(showers, all_of, again):
    """The test of showers that are twice too bright, with two other simulations that lack one primary."""
    kept = showers.primary_ids != 0
    other = Showers(showers.particles[kept], showers.pdg[kept], again(1)[kept], showers.detector)
    bright = {"twice": 2 * again(2)}
    rows = all_of(showers)
    floors = {"floor": floor_of_simulation(other, rows), "shape_floor": floor_of_sums(other, rows, 1)}
    return c2st_with_controls(bright, rows, floors, ONE, seed=1, quiet=True)


def test_tables_show_what_is_told_by_what_beside_controls(found, showers):
    twice, controls = found["candidates"]["twice"], found["controls"]
    assert (found["rows"], found["primaries"]) == (len(showers), 65)
    assert twice["verdicts"]["features"]["auc"] > 0.8
    assert controls["mc"]["primaries"] == 64
    assert set(controls) == set(CONTROLS) == {"mc", "mc_sums", "damaged_10"}
    head, areas, features = C2ST.tables(found)
    assert head.startswith(f"C2ST (classifier two-sample test) on {len(showers)} rows of 65 primaries")
    rows = [line.strip("| ").split(" | ") for line in areas.splitlines()]
    assert rows[0] == ["C2ST", "AUC images", "AUC features"]
    assert [row[0] for row in rows[2:]] == ["twice", *CONTROLS.values(), PRIMARY]
    assert rows[-1][1:] == ["–", "0.500 ± 0.000"]
    verdict = twice["verdicts"]["images"]
    assert rows[2][1] == f"{verdict['auc']:.3f} ± {verdict['error']:.3f}"
    assert len(features.splitlines()) == 2 + 5
    assert features.splitlines()[2].split(" | ")[1] == f"{twice['features'][0]['importance']:.3f}"


def test_they_come_after_the_others_and_into_the_csv(found):
    other = {"rows": 1, "primaries": 1, "split": "test", "responses": 3, "runs": 1, "photon_sum": {}}
    before, after = as_markdown(other), as_markdown({**other, "c2st": found})
    assert after == before + "\n" + "\n\n".join(C2ST.tables(found)) + "\n"
    rows = list(csv.DictReader(io.StringIO(as_csv({**other, "c2st": found}))))
    areas = {(r["candidate"], r["metric"]): float(r["mean"]) for r in rows if r["metric"].startswith("auc_")}
    assert areas["twice", "auc_features"] == found["candidates"]["twice"]["verdicts"]["features"]["auc"]
    assert areas[CONTROLS["mc"], "auc_primary"] == 0.5
    assert len({(r["candidate"], r["metric"], r["particle_or_channel"]) for r in rows}) == len(rows)


def test_the_calochallenges_classifier_is_an_option(showers, all_of, again, monkeypatch):
    short = replace(C2STSettings.calochallenge(), epochs=1)
    monkeypatch.setattr(C2STSettings, "calochallenge", lambda: short)
    rows = all_of(showers)
    floors = {"floor": floor_of_simulation(replace(showers, images=again(1)), rows)}
    both = ClassifierOptions(classifier_seeds=1, classifier_calochallenge=True)
    result = c2st_with_controls({"twice": 2 * again(2)}, rows, floors, both, seed=1, quiet=True)
    lines = [line.strip("| ").split(" | ") for line in C2ST.tables(result)[1].splitlines()]
    assert lines[0] == ["C2ST", "AUC images", "AUC features", "AUC calochallenge"]
    cells = {line[0]: line[3] for line in lines[2:]}
    assert [title for title, cell in cells.items() if cell != "–"] == ["twice", CONTROLS["mc"]]


def test_controls_need_primaries_of_their_own(found, showers, all_of, again):
    few = showers.select(np.flatnonzero(showers.primary_ids < 19))
    second = {"again": again(3)}
    rows = all_of(showers)
    alone = c2st_with_controls(second, rows, {"floor": floor_of_simulation(few, rows)}, ONE, seed=1, quiet=True)
    assert "controls" not in alone
    assert "No controls: the test needs 20 primaries or more, the floor's sample has 19." in C2ST.tables(alone)[0]


def test_few_primaries_are_no_failure_and_false_skips(run_folders, tmp_path, command):
    words = ["--shower", run_folders["teacher"], "--runs", 1, "--responses", 1, "--rows", 20, "--references", "false"]
    folders = tmp_path / "with", tmp_path / "without"
    for folder, more in zip(folders, ([], ["--classifier", "false"]), strict=True):
        assert command("evaluate", *words, "--quiet", "--out", folder, *more) == 0
    records = [read_json(folder / "evaluation.json") for folder in folders]
    assert records[0]["c2st"]["primaries"] < 20
    assert "c2st" not in records[1]
    assert [r["arguments"]["classifier"] for r in records] == [True, False]
    tables, without = ((folder / "evaluation.md").read_text(encoding="utf-8") for folder in folders)
    primaries = records[0]["c2st"]["primaries"]
    reason = f"it needs 20 primaries or more, the rows to judge have {primaries}."
    assert tables == f"{without}\nNo C2ST: {reason}\n\nNo likelihood test: {reason}\n"
    assert (folders[0] / "evaluation.csv").read_bytes() == (folders[1] / "evaluation.csv").read_bytes()


def test_it_is_of_the_samples_that_are_judged_anyway(run_folders, data, root_file, tmp_path, monkeypatch):
    asked = []

    def judge(generated, rows, floors, *_):
        channels = {name: data.geometry.channels(images) for name, images in generated.items()}
        asked.append((rows, channels, floors))
        return {"reason": "is not made here"}

    monkeypatch.setattr("calosim.evaluation.tests.c2st_with_controls", judge)
    models = Models(str(run_folders["teacher"]), [str(run_folders["photons"])])
    floors = FloorOptions(str(root_file), str(root_file))
    evaluate(Evaluate(str(tmp_path), models, floors=floors, protocol=FEW, quiet=True))
    ((rows, channels, others),) = asked
    samples = read_npz(tmp_path / "samples.npz")
    assert set(channels) == {"shape", "chain"}
    assert len(rows) == len(data.rows("test")) > len(samples["rows"])
    assert set(others) == {"floor", "shape_floor"}
    assert all(floor.known.all() for floor in others.values())
    place = np.searchsorted(rows.positions, samples["rows"])
    for name in ("shape", "chain"):
        assert np.array_equal(channels[name][place], samples[f"{name}_channels"][0, :, 0])


@pytest.mark.parametrize("name", ["classifier_rows", "classifier_seeds"])
def test_options_are_checked(name):
    with pytest.raises(ValueError, match=f"expected {name} of at least 1, got 0"):
        ClassifierOptions(**{name: 0})


#: Standard errors that a difference may lie off its expectation.
SIGMAS = 4.0


@pytest.fixture(scope="module")
def simulator(run_folders):
    return FastSimulator.load(run_folders["splits"])


@pytest.fixture(scope="module")
def own(simulator, showers, all_of):
    """Rows whose responses are the model's own, and other responses of it: ``own(seed)``."""

    def sample(seed):
        return simulator.sample(showers.particles, showers.pdg, seed, photon_sum=showers.photon_sum)

    return replace(all_of(showers), showers=replace(showers, images=sample(1))), sample


def test_a_model_is_not_surprised_by_its_own_responses(simulator, own):
    rows, sample = own
    floors = {"shape_floor": floor_of_sums(replace(rows.showers, images=sample(3)), rows, 2)}
    found = compare_likelihoods(simulator, rows, sample(2), floors, 1, quiet=True)
    assert found["per"] == "image"
    assert found["monte_carlo"] > 0
    for name in ("shape", "mc_sums"):
        assert abs(found[name]["difference"]) < SIGMAS * found[name]["error"]
    assert found["damaged_10"]["high"] < 0
    assert found["shape"]["low"] < found["shape"]["difference"] < found["shape"]["high"]
    title, metric, _, *numbers = next(LIKELIHOOD.rows(found))
    assert (title, metric, numbers) == (TITLES["shape"], "nll_difference", list(found["shape"].values()))
    head, table = LIKELIHOOD.tables(found)
    assert f"{found['monte_carlo']:.4g} nats per image" in head
    assert len(table.splitlines()) == 2 + 3
    # Members of an ensemble answer for their own rows.
    ensemble = FastSimulator(simulator.shower, members={particle_code("gamma"): simulator.shower})
    assert compare_likelihoods(ensemble, rows, sample(2), floors, 1, quiet=True)["shape"] == pytest.approx(
        found["shape"]
    )


def test_another_simulation_is_not_what_a_hardly_trained_model_generates(simulator, showers, all_of, own):
    found = compare_likelihoods(simulator, all_of(showers), own[1](2), {}, 1, quiet=True)
    assert abs(found["shape"]["difference"]) > SIGMAS * found["shape"]["error"]
    assert "mc_sums" not in found


def test_students_and_few_primaries_are_told(simulator, own):
    rows, _ = own
    student = SimpleNamespace(shower=Student.__new__(Student), members={})
    assert "students" in compare_likelihoods(student, rows, rows.showers.images, {}, 1)["reason"]
    first = np.flatnonzero(rows.primary_ids < 5)
    few = replace(
        rows,
        showers=rows.showers.select(first),
        primary_ids=rows.primary_ids[first],
        positions=first,
        natural=rows.natural[first],
    )
    found = compare_likelihoods(simulator, few, few.showers.images, {}, 1)
    assert LIKELIHOOD.tables(found) == ["No likelihood test: it needs 20 primaries or more, the rows to judge have 5."]
    assert not list(LIKELIHOOD.rows(found))
