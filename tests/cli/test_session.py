"""Sessions of a training: one folder, one process, settings that are obeyed or refused, checkpoints that are whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from calosim.cli.record import WholeCheckpoints
from calosim.io import read_csv
from calosim.runs import Run


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.fixture
def train(root_file, tmp_path, command):
    """Trains a tiny photon-sum model in a folder: ``train("name", *words)`` returns the run."""

    def run(name, *words, status=0):
        sizes = ["--model.hidden", "[8]", "--model.components", 2, "--model.members", 3]
        start = [
            "fit",
            "-c",
            "conf/photons.yaml",
            "--data.files",
            root_file,
            "--data.batch_size",
            64,
            *sizes,
            "--quiet",
        ]
        assert command(*start, "--trainer.max_epochs", 2, *words, "--run", tmp_path / name) == status
        return Run(tmp_path / name)

    return run


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_process(photons, again, error_of, tmp_path):
    handle = Run(tmp_path / "new").claim()
    assert "another process trains there now" in error_of("fit", *again[:-2], "--run", tmp_path / "new")
    Run(tmp_path / "new").release(handle)
    assert not (tmp_path / "new").exists()  # nothing came to be in it
    handle = photons.claim()
    assert "another process trains there" in error_of("fit", *again, "--trainer.max_epochs", 2, "--ckpt_path", "last")
    photons.release(handle)
    assert photons.best.exists()


def test_checkpoints_of_no_run_are_not_trained_over(again, error_of, tmp_path):
    last = Run(tmp_path / "kept").last
    last.parent.mkdir(parents=True)
    last.write_text("mine")
    said = error_of("fit", *again[:-2], "--run", tmp_path / "kept", "--trainer.max_epochs", 1)
    assert "kept: holds checkpoints and no run.json; choose another --run" in said
    assert last.read_text() == "mine"


def test_paths_are_expanded_before_anything_looks_at_them(train, again, error_of, tmp_path, monkeypatch, command):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rr").mkdir()
    shutil.copy(again[3], tmp_path / "zn.root")
    words = [*again[:2], *again[4:-2], "--data.files", "[~/zn.root]", "--trainer.max_epochs", 1, "--run=~/rr"]
    assert command("fit", *words) == 0
    assert Run(tmp_path / "rr").best.exists()
    assert Run(tmp_path / "rr").record["data"]["files"] == [str(tmp_path / "zn.root")]
    assert "holds a run already" in error_of("fit", *words)
    assert command("simulate", "--primaries", 3, "--responses_per_primary", 2, "--quiet", "--out=~/g.root") == 0
    assert (tmp_path / "g.root").is_file()


def test_what_is_stored_can_be_run_again_in_another_folder(train, command, tmp_path):
    more = {"class_path": "ModelCheckpoint", "init_args": {"filename": "every", "monitor": "val/loss"}}
    first = train("a", "--trainer.callbacks", json.dumps([more]))
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.is_file()}
    assert "a" not in [part for key in ("run", "ckpt_path") for part in str(first.config[key]).split("/")]
    assert str(tmp_path / "a") not in (first / Run.CONFIG).read_text()
    assert command("fit", "-c", first / Run.CONFIG, "--run", tmp_path / "b") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "b" / "checkpoints" / "every.ckpt").exists()
    assert same(weights(first.last), weights(Run(tmp_path / "b").last))
    # Moved, it is gone on with where it lies.
    moved = Run(shutil.move(first.folder, tmp_path / "moved"))
    assert command("fit", "-c", moved / Run.CONFIG, "--ckpt_path", "last", "--trainer.max_epochs", 3) == 0
    assert torch.load(moved.last, weights_only=True)["epoch"] == 2
    assert not first.folder.exists()


#: Ways to name a run folder, or to have it elsewhere: from the folder as it was trained to its configuration.
SPELLINGS = {
    "relative": lambda folder: os.path.relpath(folder),
    "roundabout": lambda folder: f"{folder.parent}/{folder.name}/../{folder.name}/",
    "linked": lambda folder: (folder.parent / "link").symlink_to(folder) or folder.parent / "link",
    "copied": lambda folder: shutil.copytree(folder, folder.parent / "copy"),
    "moved": lambda folder: shutil.move(folder, folder.parent / "moved"),
}


@pytest.fixture(scope="module")
def worsening(once, root_file, command):
    """A photon-sum model whose validation loss rises after its second epoch, of those it has had."""

    def make(folder):
        words = [
            "--model.hidden",
            "[8]",
            "--model.components",
            2,
            "--model.members",
            3,
            "--data.batch_size",
            64,
            "--quiet",
        ]
        words += ["--model.scheduler", "null", "--model.optimizer.lr", 0.3, "--trainer.max_epochs", 2]
        own = {"class_path": "ModelCheckpoint", "init_args": {"filename": "own", "monitor": "val/loss"}}
        words += ["--trainer.callbacks", json.dumps([own])]
        assert command("fit", "-c", "conf/photons.yaml", "--data.files", root_file, *words, "--run", folder / "r") == 0

    return once("worsening", make) / "r"


def losses(run) -> list[float]:
    """Validation losses, epoch by epoch."""
    return [float(row["val/loss"]) for row in read_csv(run / Run.METRICS) if row["val/loss"]]


def kept_loss(path) -> float:
    """The validation loss of the epoch whose weights a best checkpoint holds."""
    checkpoint = torch.load(path, weights_only=True)
    return losses(Run(path))[checkpoint["epoch"]]


@pytest.mark.parametrize("spelled", SPELLINGS.values(), ids=SPELLINGS)
def test_the_best_stays_however_its_folder_is_spelled_and_wherever_it_lies(spelled, worsening, tmp_path, command):
    run = Run(spelled(shutil.copytree(worsening, tmp_path / "r")))
    assert command("fit", "-c", f"{run.folder}/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", 3) == 0
    assert min(losses(run)) == kept_loss(run.best) < losses(run)[-1]  # or this tells nothing
    checkpoints = sorted(path.name for path in run.best.parent.iterdir())
    assert checkpoints == ["best.ckpt", "last.ckpt", "own.ckpt"]
    assert kept_loss(run.best.with_name("own.ckpt")) == min(losses(run))


def test_the_best_stays_when_a_training_goes_on_from_before_it(worsening, tmp_path, command):
    run = Run(shutil.copytree(worsening, tmp_path / "r"))
    state = torch.load(run.last, weights_only=True)
    early = run.best.with_name("early.ckpt")
    for callback in state["callbacks"].values():  # as one of the first epoch's beginning knows none
        callback |= (
            {"best_k_models": {}, "best_model_path": "", "best_model_score": None} if "monitor" in callback else {}
        )
    torch.save(state, early)
    assert command("fit", "-c", run / Run.CONFIG, "--ckpt_path", early, "--trainer.max_epochs", 3) == 0
    assert kept_loss(run.best) == min(losses(run)) < losses(run)[-1]


def test_a_best_that_is_gone_or_damaged_is_no_best(worsening, tmp_path, command):
    for name, spoil in {"gone": lambda path: path.unlink(), "damaged": lambda path: path.write_bytes(b"PK")}.items():
        run = Run(shutil.copytree(worsening, tmp_path / name))
        spoil(run.best)
        assert command("fit", "-c", run / Run.CONFIG, "--ckpt_path", "last", "--trainer.max_epochs", 3) == 0
        assert kept_loss(run.best) == losses(run)[-1]


def test_a_run_goes_on_in_its_own_folder_only(train, error_of, photons, again):
    other = train("other")
    words = ["--trainer.max_epochs", 2, "--ckpt_path", photons.last]
    assert "holds a run already" in error_of("fit", *again[:-2], "--run", other.folder, *words)


@pytest.mark.parametrize("fault", [["--model.optimizer.lr", -1], ["--data.fractions", "[0.8,0.0,0.2]"]])
def test_a_training_that_died_before_its_first_checkpoint_starts_anew(train, capfd, fault):
    run = train("r", *fault, status=2)
    assert run.begun_only
    assert train("r").training["epochs"] == 2
    assert "starts anew" in capfd.readouterr().err
    assert "sessions" not in Run(run.folder).record


def test_a_checkpoint_outside_of_a_run_has_its_results_beside_it(photons, again, command, error_of, tmp_path):
    loose = tmp_path / "deep" / "loose" / "x.ckpt"
    loose.parent.mkdir(parents=True)
    shutil.copy(photons.best, loose)
    assert command("predict", *again[:-2], "--ckpt_path", loose) == 0
    assert (loose.parent / Run.PREDICTIONS).exists()
    assert "lies in no run folder" in error_of("fit", *again[:-2], "--ckpt_path", loose)


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.optimizer.lr", "1e-6"], "optimizer.init_args.lr=0.003 instead of 1e-06"),
        (["--model.optimizer", "SGD", "--model.optimizer.lr", "1e-3"], "optimizer.class_path="),
        (["--model.scheduler", "StepLR", "--model.scheduler.step_size", "3"], "scheduler.class_path="),
        (["--model.scheduler", "null"], "model.init_args.scheduler"),
        (["--model.components", "3"], "components=2 instead of 3"),
        (["--data.seed", "5"], "data.seed=0 instead of 5"),
        (["--data.fractions", "[0.5,0.2,0.3]"], "data.fractions="),
        (["--seed_everything", "7"], "seed_everything=1 instead of 7"),
    ],
)
def test_what_a_resumed_training_would_not_obey_is_refused(words, said, photons, again, error_of):
    before = (photons.last.stat().st_mtime_ns, photons.training)
    line = error_of("fit", *again, "--trainer.max_epochs", 3, "--ckpt_path", "last", *words)
    assert said in line
    assert "which a resumed training keeps" in line
    assert (photons.last.stat().st_mtime_ns, photons.training) == before


def test_a_configuration_does_not_unname_the_checkpoint_before_it(photons, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["validate", "--ckpt_path", photons / "checkpoints" / "best.ckpt", "-c", photons / "config.yaml"]
    assert command(*words, "--quiet") == 0


def test_other_files_are_refused_by_their_content(photons, again, error_of, make_showers, tmp_path):
    from calosim.data.root import write

    write(tmp_path / "other.root", make_showers(seed=5))
    words = [*again, "--data.files", tmp_path / "other.root", "--trainer.max_epochs", 2, "--ckpt_path", "last"]
    before = (photons / Run.CONFIG).read_text()
    assert "trained on other rows: it has data_hash" in error_of("fit", *words)
    assert (photons / Run.CONFIG).read_text() == before
    assert "sessions" not in photons.record


def test_optimizers_have_one_place(train):
    words = [
        "--optimizer",
        "AdamW",
        "--optimizer.lr",
        "3e-3",
        "--lr_scheduler",
        "StepLR",
        "--lr_scheduler.step_size",
        1,
    ]
    run = train("r", *words)
    model = run.config["model"]["init_args"]
    assert model["optimizer"]["class_path"].endswith("AdamW")
    assert model["scheduler"] == {
        "class_path": "torch.optim.lr_scheduler.StepLR",
        "init_args": model["scheduler"]["init_args"],
    }
    (state,) = torch.load(run.last, weights_only=True)["lr_schedulers"]
    assert (state["step_size"], state["_last_lr"]) == (1, [pytest.approx(3e-5)])


def test_one_batch_is_one_batch(train, command, tmp_path):
    run = train("r", "--trainer.limit_train_batches", 1)
    assert run.training["steps"] == 2
    assert "limit_train_batches: 1\n" in (run / Run.CONFIG).read_text()
    assert command("fit", "-c", run / Run.CONFIG, "--run", tmp_path / "again") == 0
    assert Run(tmp_path / "again").training["steps"] == 2
    assert train("all", "--trainer.limit_train_batches", "1.0").training["steps"] > 2


def test_what_a_batch_size_finder_found_is_what_is_stored(train):
    finder = {"class_path": "BatchSizeFinder", "init_args": {"mode": "power", "max_trials": 2, "steps_per_trial": 1}}
    run = train("r", "--trainer.callbacks", json.dumps([finder]), "--data.batch_size", 2)
    assert run.config["data"]["batch_size"] > 2
    assert run.training["steps"] == 2 * -(-run.record["data"]["rows"]["train"] // run.config["data"]["batch_size"])


def test_a_strategy_that_an_overlay_removes_is_named(run_folders, root_file, tmp_path, command, capfd):
    words = ["-c", "conf/finetune/gd.yaml", "-c", "conf/study/plain.yaml", "--data.files", root_file, "--quiet"]
    words += ["--model.init_from", run_folders["teacher"], "--trainer.limit_train_batches", 1]
    words += ["--trainer.max_epochs", 1, "--data.batch_size", 16, "--run", tmp_path / "r"]
    assert command("fit", *words) == 0
    said = (
        "calosim: GradualUnfreezing, CheckerboardValidation of conf/finetune/gd.yaml is replaced by what comes after it"
    )
    assert said in capfd.readouterr().err.splitlines()


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"a": torch.ones(3)}, path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"last\.ckpt: cannot be written \(No space left"):
        WholeCheckpoints().save_checkpoint({"a": torch.zeros(3)}, path)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert torch.load(path, weights_only=True)["a"].sum() == 3


def test_a_damaged_checkpoint_falls_back_to_the_other_one(photons, again, command, capfd, error_of):
    os.truncate(photons.last, 1000)
    assert command("fit", *again, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    assert "best.ckpt, after epoch 1, takes its place" in capfd.readouterr().err
    assert torch.load(photons.last, weights_only=True)["epoch"] == 1
    for path in (photons.last, photons.best):
        os.truncate(path, 1000)
    assert "expected a checkpoint, but the file is truncated" in error_of("fit", *again, "--ckpt_path", "last")


def test_there_is_a_last_checkpoint_whatever_is_validated(train):
    run = train("r", "--trainer.check_val_every_n_epoch", 5)
    assert torch.load(run.last, weights_only=True)["epoch"] == 1
    assert run.checkpoint == run.last


def test_a_run_killed_inside_an_epoch_ends_with_the_same_weights(train, tmp_path):
    halves = ["--trainer.val_check_interval", 0.5, "--best.save_top_k", -1, "--best.filename", "{step}"]
    whole = train("whole", *halves)
    steps = sorted(whole.last.parent.glob("step=*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    inside = steps[2]  # in the middle of the second epoch
    assert torch.load(inside, weights_only=True)["epoch"] == 1
    cut = Run(shutil.copytree(whole.folder, tmp_path / "cut"))
    shutil.copy(inside, cut.last)
    train("cut", *halves, "--ckpt_path", "last")
    assert same(weights(whole.last), weights(cut.last))
    assert cut.training["samples"] == whole.training["samples"]


def test_a_schedule_follows_a_training_that_becomes_longer(train):
    cosine = ["--model.scheduler", "WarmupCosine", "--model.scheduler.warmup_steps", 0, "--model.scheduler.final", 0]

    def state(run):
        return torch.load(run.last, weights_only=True)["lr_schedulers"][0]

    steps = train("r", *cosine).training["steps"]
    assert state(train("r", *cosine, "--trainer.max_epochs", 3, "--ckpt_path", "last"))["total_steps"] == 1.5 * steps
    assert state(train("e", *cosine, "--model.scheduler.every", "epoch", "--trainer.max_epochs", 3))["total_steps"] == 3


@pytest.mark.parametrize("average", ["StochasticWeightAveraging", "EMAWeightAveraging"])
@pytest.mark.filterwarnings("ignore:(?s).*Unable to serialize instance")
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_averaged_weights_are_in_the_checkpoints(average, train, monkeypatch):
    from calosim.models.photon_sum import PhotonSum

    end = {}
    # After the callbacks' own end of the training, when the average is in the module.
    monkeypatch.setattr(PhotonSum, "on_fit_end", lambda self: end.update(self.state_dict()))
    given = {"swa_lrs": 0.01, "swa_epoch_start": 1} if average.startswith("S") else {}
    run = train(
        "r", "--trainer.callbacks", json.dumps([{"class_path": average, "init_args": given}]), "--trainer.max_epochs", 3
    )
    assert same(end, weights(run.last))
    if average.startswith("S"):
        assert same(end, weights(run.best))
    assert PhotonSum.load(run.folder)


@pytest.mark.parametrize("words", [["--trainer.max_steps", 7], ["--trainer.max_steps", 7, "--trainer.max_epochs", -1]])
def test_true_samples_and_epochs_are_counted(words, train):
    run = train("r", *words)
    rows = run.record["data"]["rows"]["train"]
    batches = -(-rows // 64)
    assert run.training["steps"] == 7
    assert run.training["epochs"] == pytest.approx(7 / batches, abs=1e-3)
    full, rest = divmod(7, batches)
    assert run.training["samples"] == full * rows + rest * 64


def test_what_a_limit_of_time_left_undone_is_not_counted(train):
    run = train("r", "--trainer.max_time", "00:00:00:00", "--trainer.max_epochs", 9)
    assert run.training["steps"] <= 1
    assert run.training["samples"] == 64 * run.training["steps"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_accelerator_that_is_not_there_is_one_line(root_file, tmp_path, error_of):
    words = ["fit", "-c", "conf/photons.yaml", "--data.files", root_file, "--run", tmp_path / "r"]
    assert "GPU" in error_of(*words, "--trainer.accelerator", "gpu").upper()


def test_a_finished_run_that_is_resumed_is_unfinished_until_it_ends(photons, again, command, monkeypatch):
    from calosim.models.photon_sum import PhotonSum

    def killed(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(PhotonSum, "training_step", killed)
    assert photons.training
    with contextlib.suppress(SystemExit):
        assert command("fit", *again, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 130
    assert photons.training is None


# -- what Lightning's users do ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.logger", "false"],
        ["--trainer.overfit_batches", "2"],
        ["--trainer.callbacks", '[{"class_path": "TQDMProgressBar"}]'],
        ["--model.scheduler", "lightning.pytorch.cli.ReduceLROnPlateau", "--model.scheduler.monitor", "val/loss"],
        ["--model.scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"],
        ["--trainer.fast_dev_run", "true"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_what_works(words, train):
    run = train("r", *words)
    assert run.best.exists() != ("fast_dev_run" in words[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.limit_train_batches", "0.0001"], "0.0001 of the `train_dataloader`"),
        (["--trainer.profiler", "xyz"], "simple"),
        (["--trainer.devices", "0"], "devices='0'"),
        (["--trainer.precision", "bf16-mixed"], "got bf16-mixed"),
        (["--trainer.callbacks", '[{"class_path": "EarlyStopping", "init_args": {"monitor": "x"}}]'], "metric `x`"),
    ],
)
def test_what_is_refused_in_one_line(words, said, again, error_of, tmp_path):
    more = ["--trainer.max_epochs", 1, "--run", tmp_path / "new"]
    assert said in error_of("fit", *again[:-2], *more, *words)


def test_fewer_epochs_than_were_trained(photons, again, command, error_of):
    assert command("fit", *again, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    said = "is of epoch 2; expected max_epochs of as many, got 1"
    assert said in error_of("fit", *again, "--trainer.max_epochs", 1, "--ckpt_path", "last")


def test_two_equal_commands_at_once_do_not_share_a_folder(again, tmp_path):
    words = [*again[:-2], "--trainer.max_epochs", 1, "--run", tmp_path / "one"]
    command = [sys.executable, "-m", "calosim", "fit", *map(str, words)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    assert sum("another process trains there now" in text or "holds a run already" in text for text in said) == 1
    assert yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())["trainer"]["max_epochs"] == 1
