"""The cache is built once, by anybody, from the contents of all that is read."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from calosim.data import read, write
from calosim.data.cache import cached_arrays, content_hash
from calosim.data.datamodule import RootDataModule


@pytest.fixture
def small(showers, tmp_path) -> Path:
    path = tmp_path / "small.root"
    write(path, showers.select(slice(0, 40)))
    return path


def stamps(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}


def test_the_cache_is_built_once(small):
    folder = cached_arrays([str(small)], "zn")
    assert folder.parent == small.parent / ".calosim_cache"
    assert set(stamps(folder)) == {
        "particles.npy",
        "pdg.npy",
        "photon_sum.npy",
        "images.npy",
        "primary_ids.npy",
        "meta.json",
    }
    before = stamps(folder)
    assert cached_arrays([str(small)], "zn") == folder
    module = RootDataModule(str(small))
    module.prepare_data()
    module.setup("fit")
    assert stamps(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing temporary is left


def test_a_moved_file_keeps_its_cache_and_a_changed_file_gets_a_new_one(small, showers, tmp_path):
    first = cached_arrays([str(small)], "zn", str(tmp_path / "cache"))
    moved = small.rename(tmp_path / "moved.root")
    assert cached_arrays([str(moved)], "zn", str(tmp_path / "cache")) == first
    write(moved, showers.select(slice(0, 41)))
    second = cached_arrays([str(moved)], "zn", str(tmp_path / "cache"))
    assert second != first
    assert len(np.load(second / "pdg.npy")) == 41


def test_the_order_of_files_is_part_of_the_cache(small, showers, tmp_path):
    other = tmp_path / "other.root"
    write(other, showers.select(slice(40, 60)))
    one, two = (cached_arrays(files, "zn") for files in ([str(small), str(other)], [str(other), str(small)]))
    assert one != two
    np.testing.assert_array_equal(np.load(one / "pdg.npy"), showers.pdg[:60])
    np.testing.assert_array_equal(np.load(two / "pdg.npy"), np.r_[showers.pdg[40:60], showers.pdg[:40]])


def test_an_unwritable_folder_falls_back_to_the_users_cache(small, tmp_path, monkeypatch):
    (small.parent / ".calosim_cache").write_text("a file where the folder should be")  # root may write anywhere
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = cached_arrays([str(small)], "zn")
    assert folder.is_relative_to(tmp_path / "home" / "calosim")
    assert cached_arrays([str(small)], "zn") == folder


def test_no_writable_folder_is_named(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: the cache folder is not writable; choose another with --data.cache"):
        cached_arrays([str(small)], "zn", str(tmp_path / "file"))


def test_left_overs_of_a_killed_builder_are_harmless(small):
    folder = cached_arrays([str(small)], "zn")
    left = folder.parent / f"{folder.name}.killed"
    folder.rename(left)
    (left / "meta.json").unlink()
    images = (left / "images.npy").read_bytes()
    (left / "images.npy").write_bytes(images[: len(images) // 2])
    assert cached_arrays([str(small)], "zn") == folder
    assert len(np.load(folder / "images.npy")) == 40


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"hello\n", lambda b: b[: len(b) // 2], None])
@pytest.mark.parametrize("name", ["meta.json", "images.npy", "pdg.npy"])
def test_a_damaged_cache_is_made_anew(name, damage, small):
    folder = cached_arrays([str(small)], "zn")
    file = folder / name
    whole = file.read_bytes()
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(whole))
    assert cached_arrays([str(small)], "zn") == folder
    assert file.read_bytes() == whole
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_bad_file_leaves_no_cache(tmp_path):
    bad = tmp_path / "bad.root"
    bad.write_bytes(b"not a ROOT file")
    with pytest.raises(ValueError, match=r"bad\.root"):
        cached_arrays([str(bad)], "zn")
    assert not list((tmp_path / ".calosim_cache").iterdir())


def test_two_builders_at_once_agree(small, monkeypatch):
    both_have_read = threading.Barrier(2, timeout=60)

    def slow(*arguments, **names):
        result = read(*arguments, **names)
        both_have_read.wait()
        return result

    monkeypatch.setattr("calosim.data.cache.read", slow)
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: cached_arrays([str(small)], "zn"), range(2)))
    (folder,) = folders
    assert list((small.parent / ".calosim_cache").iterdir()) == [folder]
    assert len(np.load(folder / "images.npy")) == 40


# What is hashed


def hash_of(*paths: Path) -> str:
    """The data hash that a run folder records, spelled out: a hash of the hashes of the files in their order."""
    return hashlib.blake2b(
        b"".join(hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in paths), digest_size=16
    ).hexdigest()


def test_the_hash_of_root_files_is_that_of_their_contents_in_listed_order(small, showers, tmp_path):
    other = tmp_path / "other.root"
    write(other, showers.select(slice(40, 44)))
    assert content_hash([str(small)]) == hash_of(small)
    assert content_hash([str(small), str(other)]) == hash_of(small, other)
    assert content_hash([str(other), str(small)]) == hash_of(other, small)


def test_a_partner_is_hashed_once_whether_or_not_it_is_listed(make, save_npz, tmp_path):
    particles, responses = save_npz(tmp_path, make(12))
    for listed in ([particles], [responses], [particles, responses], [responses, particles]):
        assert content_hash([str(path) for path in listed]) == hash_of(particles, responses)
    folder = cached_arrays([str(particles), str(responses)], "zn")
    assert len(np.load(folder / "pdg.npy")) == 12


def test_a_changed_partner_gets_a_new_cache(make, save_npz, tmp_path):
    showers = make(12)
    particles, responses = save_npz(tmp_path, showers)
    before = cached_arrays([str(particles)], "zn")
    showers.images[:] += 1
    np.savez_compressed(responses, showers.images)
    after = cached_arrays([str(particles)], "zn")
    assert after != before
    np.testing.assert_array_equal(np.load(after / "images.npy"), showers.images)


def test_changed_images_beside_a_text_get_a_new_cache(make, save_text, tmp_path):
    zn, zp = make(6), make(6, "zp")
    table = save_text(tmp_path, {"N": zn, "P": zp})
    before = [cached_arrays([str(table)], detector) for detector in ("zn", "zp")]
    zn.images[0] = np.roll(zn.images[0], 1)  # the photon sums stay
    save_text(tmp_path, {"N": zn, "P": zp})
    after = [cached_arrays([str(table)], detector) for detector in ("zn", "zp")]
    assert after[0] != before[0]
    np.testing.assert_array_equal(np.load(after[0] / "images.npy"), zn.images)
    assert after[1] == before[1]  # the images of the other detector are not read
