"""Checkpoints explain themselves, cannot run code, and are refused in one line."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
import yaml

from calosim.flows import FlowConfig
from calosim.io import write_json
from calosim.models.checkpoints import load_module, older, weights_hash, weights_of
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.models.teacher import Teacher
from calosim.representations import PixelConfig
from calosim.runs import FORMAT, Run

#: Logits of one row in batches of different size: float32 matrix products sum in another order.
REORDERED = 1e-3

TINY = FlowConfig(transforms=1, hidden=(8, 8), bins=4, dropout=0.2)
halving = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
MODULES = {
    "teacher": lambda: Teacher(flow=TINY, representation=PixelConfig(), scheduler=halving),
    "photons": lambda: PhotonSum(hidden=(8, 8), components=3, members=2, scheduler=halving),
}
every = pytest.mark.parametrize("name", MODULES)


@every
def test_a_checkpoint_rebuilds_the_module(run_folders, output, name):
    folder = run_folders[name]
    path = folder / "checkpoints" / "best.ckpt"
    torch.load(path, weights_only=True)
    module, again = load_module(folder), load_module(path)
    assert not module.training
    assert type(module) is type(MODULES[name]())
    assert bool(module.features.fitted)
    assert module.init == again.init
    for (key, one), (other_key, two) in zip(module.state_dict().items(), again.state_dict().items(), strict=True):
        assert key == other_key
        assert torch.equal(one, two)
    assert torch.equal(output(module), output(again))


@every
def test_a_checkpoint_holds_the_trained_weights_and_standardizations(root_file, tmp_path, fit, name):
    module = MODULES[name]()
    fit(module, root_file, tmp_path, trainer={"limit_train_batches": 2, "limit_val_batches": 1})
    loaded = load_module(tmp_path)
    for key, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert {**loaded.init} == {**module.init}


@pytest.mark.parametrize("name", ["teacher", "splits"])
def test_a_run_of_version_0_2_is_read_with_todays_names(run_folders, output, tmp_path, name):
    def before(values):
        old = {"representation": "coordinates", "requantization": "noise_removal"}
        if not isinstance(values, dict):
            return values
        first = {key: str(key).partition(".") for key in values}
        return {"".join([old.get(first[k][0], first[k][0]), *first[k][1:]]): before(v) for k, v in values.items()}

    folder = shutil.copytree(run_folders[name], tmp_path / "run")
    path = folder / "checkpoints" / "best.ckpt"
    written = torch.load(path, weights_only=True)
    written |= {key: before(written[key]) for key in ("calosim", "state_dict")}
    assert "coordinates" in written["calosim"]["init"]
    torch.save(written, path)
    (folder / Run.CONFIG).write_text(yaml.safe_dump(before(Run(folder).config)))
    write_json(folder / Run.RECORD, before(Run(folder).record))
    assert (Run(folder).config, Run(folder).record) == (Run(run_folders[name]).config, Run(run_folders[name]).record)
    found, wanted = load_module(folder), load_module(run_folders[name])
    assert found.init == wanted.init
    assert torch.equal(output(found), output(wanted))


class _Code:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


def entry(name, format=FORMAT, **init):
    return {"calosim": {"format": format, "class": name, "init": init}, "state_dict": {}}


FOREIGN = {
    "text": (b"not a checkpoint", r"expected a checkpoint, but the file is something else"),
    "empty": (b"", r"expected a checkpoint, but the file is empty"),
    "code": ({"calosim": _Code()}, r"expected a checkpoint, but it cannot be read"),
    "list": ([1, 2], r"found no `calosim` entry"),
    "other": ({"state_dict": {}, "pytorch-lightning_version": "2"}, r"found no `calosim` entry"),
    "torch": (entry("torch.nn.Identity"), r"a checkpoint of Teacher, .*, got one of 'torch.nn.Identity'"),
    "long": (entry("calosim.models.teacher.Teacher"), r"got one of 'calosim.models.teacher.Teacher'"),
    "part": (entry("PixelLogits"), r"got one of 'PixelLogits'"),
    "base": (entry("ShowerModel"), r"got one of 'ShowerModel'"),
    "first": ({"calosim": {"class": "calosim.teacher.Teacher", "init": {}}}, r"a checkpoint of format 2, got 1; train"),
    "later": (entry("Teacher", format=3), r"a checkpoint of format 2, got 3; train the model anew"),
    "newer": (
        entry("PhotonSum", depth=3),
        r"of a PhotonSum with depth; expected no such settings: a newer calosim wrote it",
    ),
    "weights": (entry("PhotonSum", hidden=[3]), r"its weights do not fit PhotonSum \(.*Missing key"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_get_one_clear_line(tmp_path, capsys, kind):
    content, message = FOREIGN[kind]
    path = tmp_path / f"{kind}.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"{kind}\.ckpt: .*{message}") as caught:
        load_module(path)
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out


def test_a_checkpoint_cannot_call_functions_of_calosim(tmp_path):
    target = tmp_path / "written.txt"
    evil = entry("calosim.io.atomic_write", path=str(target), content="hello")
    torch.save(evil, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="expected a checkpoint of Teacher"):
        load_module(tmp_path / "evil.ckpt")
    assert not target.exists()


def test_a_truncated_checkpoint_gets_one_clear_line(run_folders, tmp_path):
    path = tmp_path / "cut.ckpt"
    content = (run_folders["photons"] / "checkpoints" / "best.ckpt").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.ckpt: expected a checkpoint, but the file is truncated, at \d+ bytes$"):
        load_module(path)


def test_a_checkpoint_of_another_class_is_named(run_folders):
    with pytest.raises(ValueError, match="expected a checkpoint of PhotonSum, got one of Teacher"):
        PhotonSum.load(run_folders["teacher"])
    with pytest.raises(ValueError, match="expected a checkpoint of ShowerModel, got one of PhotonSum"):
        ShowerModel.load(run_folders["photons"])
    assert isinstance(ShowerModel.load(run_folders["teacher"]), Teacher)


def test_a_run_folder_may_be_moved(run_folders, tmp_path):
    shutil.copytree(run_folders["photons"], tmp_path / "elsewhere")
    assert isinstance(load_module(tmp_path / "elsewhere"), PhotonSum)


def test_weights_have_one_hash_wherever_they_are_stored(run_folders, tmp_path, train_on):
    run = shutil.copytree(run_folders["photons"], tmp_path / "r")
    found = weights_hash(run)
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    for name, changed in {
        "stripped": {"optimizer_states": [], "callbacks": {}},
        "other settings": {"calosim": {**state["calosim"], "init": {**state["calosim"]["init"], "hidden": [9]}}},
    }.items():
        torch.save(state | changed, tmp_path / f"{name}.ckpt")
    assert weights_hash(tmp_path / "stripped.ckpt") == weights_hash(run_folders["photons"]) == found
    train_on(run)
    assert len({found, weights_hash(run), weights_hash(tmp_path / "other settings.ckpt")}) == 3


def test_a_result_is_older_than_weights_that_changed_since(run_folders, tmp_path, train_on):
    run = shutil.copytree(run_folders["photons"], tmp_path / "r")
    told = weights_of([run, None], run / "evaluation")
    copy = shutil.copytree(run, tmp_path / "copy")
    train_on(copy)
    # The copy's evaluation is of the copy, the other of what it lies in, and one that lies elsewhere of what it names.
    assert older(told, copy / "evaluation") == "older than the weights of copy"
    assert older(told, run / "evaluation") == older(told, tmp_path / "deep" / "elsewhere") == ""
    train_on(run)
    assert (
        older(told, run / "evaluation") == older(told, tmp_path / "deep" / "elsewhere") == "older than the weights of r"
    )
    moved = shutil.move(run, tmp_path / "moved")
    assert older(told, moved / "evaluation") == "older than the weights of moved"
    shutil.rmtree(moved)
    assert older(told, tmp_path / "deep" / "elsewhere") == older(None, copy) == ""
