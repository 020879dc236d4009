"""The C++ client gives the images of the Python client; where ONNX Runtime's headers and a compiler are at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from calosim.data.reading import read_primaries
from calosim.export.client import Client

HEADERS = Path(os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
PRIMARIES = "conf/demo/primaries.csv"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The client, with the library of the Python package."""
    import onnxruntime

    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not (HEADERS / "onnxruntime_cxx_api.h").is_file() or shutil.which("cmake") is None or not libraries:
        pytest.skip("ONNX Runtime's headers (ONNXRUNTIME_INCLUDE), its library or cmake are not here")
    build = tmp_path_factory.mktemp("o2_client")
    library = build / "libonnxruntime.so.1"  # what it calls itself
    library.symlink_to(libraries[-1])
    places = [f"-DONNXRUNTIME_INCLUDE={HEADERS}", f"-DONNXRUNTIME_LIBRARY={library}"]
    subprocess.run(["cmake", "-S", "benchmarks/o2_client", "-B", build, *places], check=True)
    subprocess.run(["cmake", "--build", build], check=True)
    return build / "o2_client"


def test_images_are_those_of_python(program, exported):
    words = [program, exported, "zn", PRIMARIES, "20", "3"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    answers = np.array([line.split(",") for line in lines], np.float64)
    noise, channels, pixels = np.split(answers, [10, 15], axis=1)
    client, particles = Client(exported), read_primaries(PRIMARIES)[0].repeat(20, 0)
    images = client.images(particles, noise.astype(np.float32))
    assert 0 < (images.sum((1, 2)) > 0).sum() < len(images)
    assert np.array_equal(pixels.reshape(images.shape), images)
    assert np.array_equal(channels, client.detector.channels(images, "o2"))


@pytest.mark.parametrize(("words", "said"), [([], "expected FOLDER"), (["conf", "zn", PRIMARIES], "generator")])
def test_bad_words(words, said, program):
    found = subprocess.run([program, *words], capture_output=True, text=True)
    assert found.returncode == 2
    assert said in found.stderr
