"""Records of how data were made: believed only while the file is the one they speak of."""

from __future__ import annotations

import os

from calosim.data.root import current_hash, primaries_hash, read_recipe, write_recipe


def test_a_record_is_of_one_file(tmp_path, root_file):
    data = tmp_path / "a.root"
    data.write_bytes(root_file.read_bytes())
    assert read_recipe(data) is None
    write_recipe(str(data), {"primaries": str(root_file), "seed": 1})
    recipe = read_recipe(data)
    assert recipe["settings"] == {"primaries": str(root_file), "seed": 1}
    assert recipe["primaries_hash"] == recipe["data_hash"] == current_hash([str(root_file)])
    data.write_bytes(root_file.read_bytes() + b" ")
    assert read_recipe(data) is None


def test_a_hash_is_that_of_the_files_as_they_are(tmp_path, root_file):
    data = tmp_path / "a.root"
    data.write_bytes(root_file.read_bytes())
    before = current_hash([str(data)])
    assert current_hash([str(data)]) == before
    data.write_bytes(root_file.read_bytes()[:-1] + b" ")
    os.utime(data, ns=(1, 1))
    assert current_hash([str(data)]) != before


def test_primaries_may_be_a_table_without_images(tmp_path, root_file):
    data, table = tmp_path / "a.root", tmp_path / "primaries.csv"
    data.write_bytes(root_file.read_bytes())
    table.write_text("pdg,energy,vx,vy,vz,px,py,pz\n22,100,0,0,0,0,0,100\n")
    write_recipe(str(data), {"primaries": str(table)})
    assert read_recipe(data)["primaries_hash"] == primaries_hash(str(table))
    assert primaries_hash(str(root_file)) == current_hash([str(root_file)])
