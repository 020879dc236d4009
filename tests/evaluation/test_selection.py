"""Selected rows: they keep the mix, they are of the split of the training, and no judged model has seen them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from calosim.data.root import write
from calosim.evaluation.selection import (
    Protocol,
    check_splits,
    mixed_rows,
    rank_within,
    select_rows,
    some_rows,
    trained_data,
)
from calosim.models.finetune import FineTune
from calosim.options import Ensemble
from calosim.runs import Run
from calosim.simulation.simulator import save_ensemble


def test_rank_within_counts_earlier_rows():
    assert rank_within(np.array([3, 1, 3, 3, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]


def test_some_rows_keep_the_mix_and_responses_together():
    rng = np.random.default_rng(3)
    inputs = rng.permutation(np.repeat(np.arange(60), rng.integers(1, 40, 60)))
    pdg = np.where(inputs < 40, 22, 2112)
    chosen = some_rows(inputs, pdg, 300)
    assert 200 <= len(chosen) <= 400
    assert np.array_equal(chosen, np.unique(chosen))
    assert np.median(np.unique(inputs[chosen], return_counts=True)[1]) >= 4
    assert abs((pdg[chosen] == 22).mean() - (pdg == 22).mean()) < 0.1
    assert np.array_equal(some_rows(inputs, pdg, None), np.arange(len(inputs)))
    assert len(some_rows(inputs, pdg, 1)) <= 5


def test_rare_types_get_rows_of_their_own_and_all_keeps_the_mix():
    rng = np.random.default_rng(3)
    inputs = rng.permutation(np.repeat(np.arange(100), rng.integers(5, 40, 100)))
    pdg = np.where(inputs < 90, 22, 3122)
    chosen, natural = mixed_rows(inputs, pdg, 300, 150)
    assert np.array_equal(chosen[natural], some_rows(inputs, pdg, 300))
    assert abs((pdg[chosen] == 3122).sum() - 150) < 30
    whole, mix = mixed_rows(inputs, pdg, None, 150)
    assert len(whole) == len(pdg)
    assert mix.all()


@pytest.mark.parametrize("name", ["runs", "responses", "rows", "rows_of_each"])
def test_numbers_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"expected {name} of at least 1, got 0"):
        Protocol(**{name: 0})


def test_a_model_of_one_particle_is_judged_on_the_same_rows_as_others(data):
    protocol = Protocol(rows=40, rows_of_each=10)
    every, neutrons = select_rows(data, protocol), select_rows(data, protocol, 2112)
    own = every.showers.pdg == 2112
    assert 0 < len(neutrons) < len(every)
    for name in ("positions", "primary_ids", "natural"):
        assert np.array_equal(getattr(neutrons, name), getattr(every, name)[own])
    assert np.array_equal(neutrons.showers.images, every.showers.images[own])
    assert len(select_rows(data, protocol, 310)) == 0  # there is none


@pytest.fixture
def other(run_folders, tmp_path):
    """Makes run folders like the teacher's whose record of the data differs: ``other(seed=7)``."""

    def make(**changes):
        run, folder = Run(run_folders["teacher"]), tmp_path / "other"
        folder.mkdir()
        shutil.copy(run / Run.CONFIG, folder)
        record = json.loads((run / Run.RECORD).read_text())
        (folder / Run.RECORD).write_text(json.dumps({**record, "data": {**record["data"], **changes}}))
        return folder

    return make


def test_the_data_of_a_training_is_found_again(run_folders, data, other):
    found, particle = trained_data(run_folders["teacher"])
    assert particle is None
    assert np.array_equal(found.rows("test"), data.rows("test"))
    assert trained_data(Run(run_folders["teacher"]).best, model=other(particle=22))[1] == 22


def test_data_that_changed_since_the_training_are_refused(run_folders, make_showers, tmp_path):
    write(tmp_path / "other.root", make_showers(seed=5))
    with pytest.raises(ValueError, match="not the data of"):
        trained_data(run_folders["teacher"], [str(tmp_path / "other.root")])
    with pytest.raises(ValueError, match="expected a run folder"):
        trained_data(tmp_path)


def test_models_that_may_have_seen_the_rows_are_refused(run_folders, other, tmp_path):
    mine, theirs = run_folders["teacher"], other(seed=7)
    check_splits(mine, [run_folders["photons"], tmp_path], given=False)  # one of the same split, one that does not tell
    for given in (False, True):
        with pytest.raises(ValueError, match="it has seed 7, not 0"):
            check_splits(mine, [theirs], given)


def test_models_that_began_from_one_that_may_have_seen_the_rows_are_refused(run_folders, fit, root_file, tmp_path):
    few = {"limit_train_batches": 1, "limit_val_batches": 1}
    fit(FineTune(run_folders["splits"]), root_file, tmp_path / "tuned", seed=7, trainer=few)
    shutil.copy(run_folders["splits"] / Run.CONFIG, tmp_path / "tuned")
    record = Run(run_folders["splits"]).record
    (tmp_path / "tuned" / Run.RECORD).write_text(json.dumps({**record, "data": {**record["data"], "seed": 7}}))
    for given in (False, True):
        with pytest.raises(ValueError, match="it has seed 0, not 7"):
            check_splits(tmp_path / "tuned", [tmp_path / "tuned"], given)
    # Also as a member of an ensemble, whose folder cannot tell of one split.
    save_ensemble(Ensemble(tmp_path / "e", str(run_folders["splits"]), {"lambda": str(tmp_path / "tuned")}))
    with pytest.raises(ValueError, match="it has seed 7, not 0"):
        check_splits(run_folders["splits"], [tmp_path / "e"], given=True)


def test_models_of_another_data_set_are_meant_to_be_there_only_if_the_data_was_named(run_folders, other):
    mine, theirs = run_folders["teacher"], other(data_hash="f00")
    check_splits(mine, [theirs], given=True)
    with pytest.raises(ValueError, match="it has data_hash f00, not"):
        check_splits(mine, [theirs], given=False)
