"""What models have learned from goes with their checkpoints, and nothing that is not finite does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calosim.data.record import Showers, check_showers
from calosim.models.checkpoints import lineages, load_module
from calosim.models.finetune import FineTune
from calosim.models.photon_sum import PhotonSum
from calosim.models.provenance import PRECISIONS, check_precision, joined, not_seen, same_line, split_unlike
from calosim.models.teacher import Teacher
from calosim.representations import SplitConfig

SEEN = {"pdg": {"22": 5}, "low": [100.0] + 8 * [0.0], "high": [200.0] + 8 * [0.0]}


def small() -> PhotonSum:
    return PhotonSum(hidden=(4,), components=2, members=2)


# -- finite numbers ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_training_by_its_row(root_file, tmp_path, fit, monkeypatch):
    module = small()
    truth = module.head.log_prob

    def wrong(outputs, energy, photon_sum):
        return torch.where(photon_sum == photon_sum.max(), torch.nan, truth(outputs, energy, photon_sum))

    monkeypatch.setattr(module.head, "log_prob", wrong)
    with pytest.raises(FloatingPointError, match=r"loss in training after 0 steps: row \d+ of the data gives nan"):
        fit(module, root_file, tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_validation_rows_that_are_not_finite_are_not_dropped(root_file, tmp_path, fit, monkeypatch):
    module = small()
    monkeypatch.setattr(PhotonSum, "loss", lambda self, batch, step=-1: torch.full((len(batch["rows"]),), torch.nan))
    with pytest.raises(FloatingPointError, match=r"loss in evaluation after \d+ steps: row \d+ of the data gives nan"):
        fit(module, root_file, tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_gradients_and_weights_that_are_not_finite_end_the_training(root_file, tmp_path, fit):
    module = small()
    weight = next(p for p in module.parameters() if p.requires_grad)
    weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    with pytest.raises(FloatingPointError, match=r"gradient of posterior\.\S+ after 0 steps: expected finite numbers"):
        fit(module, root_file, tmp_path)
    with torch.no_grad():
        weight.view(-1)[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"weights posterior\.\S+ after 0 steps"):
        module.on_save_checkpoint({"state_dict": module.state_dict()})


def test_checkpoints_with_weights_that_are_not_finite_are_refused(run_folders, tmp_path):
    checkpoint = torch.load(run_folders["photons"] / "checkpoints" / "best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = torch.nan
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt: its weights \S+ are not finite"):
        load_module(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("verb", ["predict", "validate", "test"])
def test_no_verb_uses_such_weights_or_half_precisions(verb, run_folders, root_file, tmp_path, error_of):
    checkpoint = torch.load(run_folders["photons"] / "checkpoints" / "best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = torch.nan
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    words = [verb, "-c", run_folders["photons"] / "config.yaml", "--data.files", root_file, "--quiet"]
    assert "are not finite" in error_of(*words, "--ckpt_path", tmp_path / "bad.ckpt")
    good = run_folders["photons"] / "checkpoints" / "best.ckpt"
    assert "got 16-true" in error_of(*words, "--ckpt_path", good, "--trainer.precision", "16-true")


def test_an_enormous_rate_ends_in_one_line_and_without_a_checkpoint(root_file, tmp_path, command, capfd):
    words = [
        "-c",
        "conf/photons.yaml",
        "--data.files",
        root_file,
        "--model.hidden",
        "[8]",
        "--data.batch_size",
        64,
        "--quiet",
    ]
    assert (
        command("fit", *words, "--model.optimizer.lr", "1e30", "--trainer.max_epochs", 2, "--run", tmp_path / "r") == 1
    )
    assert capfd.readouterr().err.count("calosim: error: ") == 1
    assert not list(tmp_path.rglob("*.ckpt"))


def test_inputs_are_checked_in_the_precision_they_are_used_in(showers):
    particles = showers.particles.copy()
    particles[7, 1] = 1e39
    with pytest.raises(ValueError, match=r"x: row 7: vx is 1e\+39; expected a finite number of 32 bits"):
        check_showers(Showers(particles, showers.pdg, showers.images, "zn"), "x", lambda row: f"row {row}")


def test_precisions_that_are_right(root_file, tmp_path, fit):
    for precision in ("16-true", "bf16-true", "16-mixed", "bf16-mixed"):
        with pytest.raises(ValueError, match=f"expected trainer.precision 32-true or 64-true, got {precision}"):
            check_precision(precision)
    losses = []
    for precision in PRECISIONS:
        torch.manual_seed(0)
        module = Teacher(representation=SplitConfig(hidden=16, event=8, local_hidden=8))  # without weight noise
        trainer = fit(module, root_file, tmp_path / precision, trainer={"precision": precision})
        losses.append(float(trainer.callback_metrics["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    with pytest.raises(ValueError, match="got bf16-mixed"):
        fit(small(), root_file, tmp_path / "half", trainer={"precision": "bf16-mixed"})


# -- what was seen ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_tells_what_its_model_has_seen(run_folders, showers):
    module = Teacher.load(run_folders["splits"])
    (entry,) = module.lineage
    assert (entry["split_by"], entry["seed"], entry["particle"]) == ("primary", 0, None)
    assert set(module.seen["pdg"]) == {str(code) for code in np.unique(showers.pdg)}
    assert (np.array(module.seen["low"]) >= showers.particles.min(0)).all()
    assert lineages(run_folders["splits"]) == module.lineage


def test_a_fine_tuned_model_has_seen_what_its_baseline_saw(run_folders, root_file, tmp_path, fit):
    module = FineTune(run_folders["splits"])
    few = {"limit_train_batches": 1, "limit_val_batches": 1}
    fit(module, root_file, tmp_path, seed=3, particle="lambda", trainer=few)
    line = lineages(tmp_path / "checkpoints" / "last.ckpt")
    assert [(e["seed"], e["particle"]) for e in line] == [(0, None), (3, 3122)]
    assert "seed 0, not 3" in split_unlike(line)
    assert "22" in Teacher.load(tmp_path).seen["pdg"]
    # What is resumed goes on with the same rows.
    again = FineTune(run_folders["splits"])
    with pytest.raises(ValueError, match="trained on other rows: it has seed 3, not 4"):
        fit(again, root_file, tmp_path / "a", 2, tmp_path / "checkpoints" / "last.ckpt", seed=4, particle="lambda")
    other = run_folders["photons"] / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="of another model: it has components 2, not 3"):
        fit(PhotonSum(hidden=(8,), components=3, bins=32, members=3), root_file, tmp_path / "b", 2, other)


def test_lines():
    a, b = {"data_hash": "x", "seed": 1}, {"data_hash": "x", "seed": 2}
    assert joined([a], [b, a]) == [a, b]
    assert same_line([a], [a]) == split_unlike([a]) == ""
    assert same_line([a], [b]) == "seed 2, not 1"
    assert same_line([a], [a, b]).startswith("2 data sets")


def test_what_was_not_seen_is_counted():
    particles = np.zeros((4, 9))
    particles[:, 0] = [150, 205, 400, 150]
    found = not_seen(SEEN, particles, np.array([22, 22, 22, 2112]))
    assert {reason: rows.tolist() for reason, rows in found.items()} == {
        "neutron never seen": [False, False, False, True],
        "energy beyond [100, 200]": [False, False, True, False],
    }
    particles[:, 0] = [150, 89, 1e-9, 100]
    assert not_seen(SEEN, particles, np.full(4, 22))["energy beyond [100, 200]"].tolist() == [False, True, True, False]
    assert not_seen(None, particles, np.array([22, 22, 22, 2112])) == {}
