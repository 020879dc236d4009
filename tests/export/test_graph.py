"""The exported chain is the fast simulation: the same numbers, the same photons."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from calosim.detectors import get_detector
from calosim.export.builder import NORMALS, Builder, rows_of
from calosim.export.client import Client
from calosim.export.graph import LEAST, classifier, generator, logarithms, simulator
from calosim.export.o2 import script
from calosim.models.acceptance import Acceptance
from calosim.models.flow_matching import FlowMatching
from calosim.models.gan import GAN
from calosim.models.photon_sum import PhotonSum
from calosim.models.student import Student
from calosim.models.teacher import Teacher
from calosim.models.vae import VAE
from calosim.representations import SplitConfig
from calosim.simulation.simulator import FastSimulator

#: Of tiny networks no image was seen to differ; one may, where rounding meets a whole number.
MOST_DIFFERENT = 0.02


def noise(n: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, NORMALS)).astype(np.float32)


def session(model: bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: bytes, particles: np.ndarray, z: np.ndarray) -> np.ndarray:
    one, features = session(model), particles.astype(np.float32)
    features[:, 8] *= 3
    outputs = [one.run(None, {"noise": z[n : n + 1], "features": features[n : n + 1]})[0] for n in range(len(z))]
    return np.expm1(np.stack(outputs)).astype(np.int64).transpose(0, 2, 1)


def test_the_chain_is_that_of_python_photon_for_photon(exported, run_folders, showers):
    particles, pdg, z = showers.particles[:150], showers.pdg[:150], noise(150)
    simulator = FastSimulator.load(run_folders["splits"], run_folders["photons"], acceptance=run_folders["acceptance"])
    expected = simulator.sample(particles, pdg, 0, rows_of(z))
    images = Client(exported).images(particles, z)
    assert (images != expected).any((1, 2)).mean() <= MOST_DIFFERENT
    assert 0 < (expected.sum((1, 2)) == 0).sum() < 150
    # Another noise, another event; the same noise, the same.
    assert (Client(exported).images(particles, noise(150, 4)) != images).any((1, 2)).sum() > 20
    assert (Client(exported).images(particles, z) == images).all()


@pytest.mark.parametrize(
    ("detector", "settings"),
    [
        ("zp", SplitConfig(hidden=16, event=8, local_hidden=8)),
        ("zn", SplitConfig(coarse_levels=3, coarse_steps=0, hidden=16, event=8, local_hidden=8, phases=1, reach=1)),
        ("zn", SplitConfig(components=1, local_components=1, hidden=16, event=8, local_hidden=8)),
        ("focal_h", SplitConfig(coarse_levels=5, hidden=32, components=2, event=8, local_hidden=8)),
        ("focal_h", SplitConfig(coarse_levels=99, hidden=900, components=2)),
    ],
)
def test_all_settings_and_detectors(detector, settings, make_showers):
    torch.manual_seed(1)
    showers, z = make_showers(detector, responses=2), noise(60)
    shape, photons = Teacher(detector, representation=settings).eval(), PhotonSum(detector, hidden=(8,), members=3)
    particles, total = torch.from_numpy(showers.particles), torch.from_numpy(showers.photon_sum)
    shape.features.fit(particles, total)
    photons.features.fit(particles)
    photons.encoding.fit(photons.features(particles))
    photons.head.fit(total, particles[:, 0])
    with torch.no_grad():  # as if trained: all inputs matter
        for p in shape.parameters():
            p.add_(0.1 * torch.randn_like(p))
    particles = showers.particles[:60]
    expected = FastSimulator(shape, photons).sample(particles, showers.pdg[:60], 0, rows_of(z))
    images = run(generator(shape, photons), particles, z)
    assert (images != expected).any((1, 2)).mean() <= MOST_DIFFERENT
    assert (expected.sum((1, 2)) >= 10).all()


@pytest.fixture(scope="module")
def models(run_folders) -> tuple[Student, PhotonSum]:
    """A student, whose weights are not those of its start, and a photon-sum model."""
    torch.manual_seed(2)
    student = Student(init_from=run_folders["splits"]).eval()
    with torch.no_grad():
        for p in student.flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return student, PhotonSum.load(run_folders["photons"])


def test_a_student(models, showers):
    particles, z = showers.particles[:150], noise(150)
    expected = FastSimulator(*models).sample(particles, showers.pdg[:150], 0, rows_of(z))
    images = run(generator(*models), particles, z)
    assert (images != expected).any((1, 2)).mean() <= MOST_DIFFERENT


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("detector", "normals"), [("zn", 10), ("zp", 7)])
def test_a_gan(detector, normals, make_showers):
    torch.manual_seed(4)
    showers, z = make_showers(detector, responses=2), noise(100)
    gan, photons = GAN(detector, noise=normals, width=8), PhotonSum(detector, hidden=(8,), members=3)
    particles, total = torch.from_numpy(showers.particles), torch.from_numpy(showers.photon_sum)
    gan.features.fit(particles, total)
    photons.features.fit(particles)
    photons.encoding.fit(photons.features(particles))
    photons.head.fit(total, particles[:, 0])
    for _ in range(30):  # statistics of the normalization, too
        gan.train().logarithms(torch.randn(16, normals), gan.context(particles[:16].float(), total[:16]))
    with torch.no_grad():
        for p in gan.generator.parameters():
            p.mul_(1.5)
    particles, pdg = showers.particles[:100], showers.pdg[:100]
    expected = FastSimulator(gan.eval(), photons).sample(particles, pdg, 0, rows_of(z))
    assert (run(generator(gan, photons), particles, z) != expected).any((1, 2)).mean() <= MOST_DIFFERENT
    features = particles.astype(np.float32)
    several = session(simulator(gan, photons)).run(None, {"noise": z, "features": features})[0]
    assert (several != expected).any((1, 2)).mean() <= MOST_DIFFERENT
    scripted = torch.jit.load(io.BytesIO(script(gan, photons)))(torch.from_numpy(z), torch.from_numpy(features)).numpy()
    assert (scripted != expected).any((1, 2)).mean() <= MOST_DIFFERENT


@pytest.mark.parametrize("accepted", [False, True])
def test_a_file_for_any_program_takes_many_rows_in_our_units(accepted, models, run_folders, showers):
    particles, z = showers.particles[:100], noise(100)
    acceptance = Acceptance.load(run_folders["acceptance"]) if accepted else None
    one = session(simulator(*models, acceptance))
    assert [(i.name, i.shape) for i in one.get_inputs()] == [("noise", ["rows", 10]), ("features", ["rows", 9])]
    expected = FastSimulator(*models, acceptance=acceptance).sample(particles, showers.pdg[:100], 0, rows_of(z))
    for rows in (100, 1, 100):  # what a run leaves in memory is none of the next one's
        images = one.run(["images"], {"noise": z[:rows], "features": particles[:rows].astype(np.float32)})[0]
        assert images.shape == expected[:rows].shape
        assert (images != expected[:rows]).any((1, 2)).mean() <= MOST_DIFFERENT


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("accepted", [False, True])
def test_torchscript_is_python_to_the_photon_whatever_the_number_of_rows(accepted, models, run_folders, showers):
    shape, photons = models if accepted else (Teacher.load(run_folders["splits"]), models[1])
    acceptance = Acceptance.load(run_folders["acceptance"]) if accepted else None
    one = torch.jit.load(io.BytesIO(script(shape, photons, acceptance)))
    simulator, particles, pdg = FastSimulator(shape, photons, acceptance=acceptance), showers.particles, showers.pdg
    for rows in (0, 1, 3, 150):
        z = noise(rows, rows)
        images = one(torch.from_numpy(z), torch.from_numpy(particles[:rows].astype(np.float32)))
        assert np.array_equal(images.numpy(), simulator.sample(particles[:rows], pdg[:rows], 0, rows_of(z)))
    assert all(p.requires_grad for p in shape.flow.parameters())  # as before


def test_the_classifier_spares_what_hardly_ever_responds(run_folders, showers):
    model = Acceptance.load(run_folders["acceptance"])
    features = showers.particles[:60].astype(np.float32)
    features[:, 4:6] *= np.linspace(0, 60, 60, dtype=np.float32)[:, None]
    likely = model.probability(torch.from_numpy(features)).numpy()
    features[:, 8] *= 3
    one = session(classifier(model.detector, model))
    said = np.array([one.run(None, {"features": row[None]})[0].item() for row in features])
    assert np.array_equal(said, likely >= LEAST)


def test_a_classifier_without_a_model_says_yes_to_all(showers):
    one = session(classifier(get_detector("zp")))
    features = np.concatenate(
        (showers.particles[:20], np.full((1, 9), np.nan), np.full((1, 9), -np.inf), np.zeros((1, 9)))
    )
    assert all(one.run(None, {"features": row[None]})[0].tolist() == [[1.0]] for row in features.astype(np.float32))


@pytest.fixture(scope="module")
def written():
    """What a file has for counts (N,): float32 with the same shape."""

    def write(counts: np.ndarray) -> np.ndarray:
        g = Builder()
        model = g.model({"counts": counts.size}, (logarithms(g, "counts"), "image", (1, counts.size)), "")
        return session(model).run(None, {"counts": counts.astype(np.float32)[None]})[0][0]

    return write


def test_counts_survive_a_cut_of_the_decimals(written):
    n = np.arange(450_000)
    value = written(n)
    assert value[0] == 0
    # In the precision of the file, as in O2 and in other clients.
    for wide in (np.float32, np.float64):
        assert np.array_equal(np.expm1(value.astype(wide)).astype(np.int64), n)
    # A library whose expm1 is the float32 below the right one cuts no photon either.
    assert (np.expm1(value.astype(np.float64)) >= np.nextafter(n, n + 1, dtype=np.float32))[1:].all()
    # No law of float32 holds for all: its distances are a photon near 500,000 and two near a million.
    assert np.abs(np.expm1(written(np.arange(2_000_000))).astype(np.int64) - np.arange(2_000_000)).max() <= 4


def test_sums_of_logarithms_round_to_sums_of_counts(written, showers):
    # As O2's debug output adds them: in float32, pixel by pixel, from a response as it is to one of 350,000 photons.
    for factor in (1, 10, 350_000 // showers.images.sum((1, 2)).max()):
        counts = showers.images.astype(np.int64).reshape(len(showers.images), -1) * factor
        photons = np.expm1(written(counts.flatten())).reshape(counts.shape)
        assert np.array_equal(np.add.accumulate(photons, 1, dtype=np.float32)[:, -1].round(), counts.sum(1))


def test_what_cannot_be_exported(run_folders):
    photons = PhotonSum.load(run_folders["photons"])
    with pytest.raises(ValueError, match="that can be exported, but it is of pixels, whose flow no graph is known of"):
        generator(Teacher.load(run_folders["teacher"]), photons)
    for shower, why in (
        (VAE(width=8), "photons are drawn one by one"),
        (FlowMatching(widths=(4,)), "a network that attends"),
    ):
        for form in (simulator, script):
            with pytest.raises(ValueError, match=f"expected a shower model that can be exported, but {why}"):
                form(shower, photons)
    with pytest.raises(ValueError, match="a mixture head to export, got a gaussian head"):
        generator(Teacher.load(run_folders["splits"]), PhotonSum("zn", head="gaussian"))
    with pytest.raises(ValueError, match="models of one detector"):
        generator(Teacher("zp"), photons)
