"""The page stands alone: links lead somewhere, pictures decode, nothing is fetched, and a browser agrees."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys

import pytest
from PIL import Image

from calosim.report.page import Picture, Section, name_apart, render
from calosim.runs import Run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_page_stands_alone(page, parsed):
    text = page.read_text()
    found = parsed(text)
    assert not found.fetched
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", text)
    assert found.links
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert len(found.images) >= 4
    for image in found.images:
        head, _, data = image["src"].partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert min(picture.size) > 100
        assert len(image["alt"]) > 10
    # What users name things does not become markup.
    assert "A &lt;b&gt;title&lt;/b&gt;" in text
    assert "&lt;photons&gt; &amp; co" in text
    assert "<photons>" not in text


def test_names_are_text_in_every_piece(parsed, png):
    name = "<i>\"a\" & 'b'</i>"
    section = Section("key", name)
    section.table([name], [[name]])
    section.details(name, name, name)
    section.markdown(f"# Gone\n\n## Below\n\n{name}\n\n| a |\n|---|\n| {name} |\n")
    section.figures(Picture(png, name, name))
    text = render(name, name, [section])
    assert "<i>" not in text
    assert text.count("&lt;i&gt;") == 14
    assert "Gone" not in text
    assert "<h3>Below</h3>" in text
    # What may be wider than the window can be scrolled by keyboard.
    assert parsed(text).scrolling == ["div", "div", "figure"]
    assert text.count('<th scope="col">') == text.count("<th") - text.count("<thead>") == 2


def test_what_stands_beside_the_models_steps_back():
    section = Section("key", "title")
    section.markdown("| WS | all |\n|---|---|\n| model | 2.0 ± 0.1 [1.5, 2.5] |\n| floor (x) | [1, 2] is no cell |\n")
    text = render("title", "lead", [section], "the end")
    assert "<td>2.0 ± 0.1 <small>[1.5, 2.5]</small></td>" in text
    assert text.count("<small>") == text.count('<tr class="beside">') == 1
    assert "<footer>the end</footer>" in text


def test_anchors_differ(parsed, png):
    sections = [Section(key, "title") for key in ("a", "b", "a", "a")]
    name_apart(sections)
    assert [section.key for section in sections] == ["a", "b", "a-2", "a-3"]
    sections[0].figures(Picture(png, "one", "one"), Picture(png, "two", "two"))
    assert [picture.alt for picture in sections[0].pictures] == ["one", "two"]
    found = parsed(render("title", "lead", sections))
    assert [f"#{anchor}" for anchor in found.ids] == found.links
    assert [image["alt"] for image in found.images] == ["one", "two"]


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser(page, tmp_path, width):
    shot = tmp_path / "shot.png"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/profile",
    ]
    # The document says itself what is wrong with it: pictures that do not decode, a body wider than the window.
    check = (
        "<script>addEventListener('load', () => { const bad = [...document.images].filter(i => !i.complete || !i.naturalWidth);"
        "document.title = `bad ${bad.length} wide ${document.documentElement.scrollWidth > innerWidth + 1}`; })</script>"
    )
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", check + "</body>"))
    size = f"--window-size={width},2000"
    command = [BROWSER, *options, size, f"--screenshot={shot}", copy.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    with Image.open(shot) as picture:
        assert picture.convert("L").getextrema()[0] < 100  # there is ink
    command = [BROWSER, *options, size, "--dump-dom", copy.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>bad 0 wide false</title>" in dom


def test_the_same_goes_to_wandb(folders, tmp_path):
    pytest.importorskip("wandb")
    # Without the samples, whose pictures take a while to draw.
    shutil.copytree(folders / "judged", tmp_path / "judged", ignore=shutil.ignore_patterns("*.npz"))
    out = tmp_path / "report.html"
    runs = [
        str(folder) for folder in (tmp_path / "judged", folders / "teacher", folders / "study", folders / "explained")
    ]
    words = ["report", "--runs", json.dumps(runs), "--out", str(out), "--wandb", "tests", "--quiet", "true"]
    # A process of its own: what earlier tests told W&B's service would be in this run too.
    silent = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-m", "calosim", *words], env=silent, check=True, capture_output=True)
    run = next((tmp_path / "wandb").glob("offline-run-*"))
    records = read_back(next(run.glob("*.wandb")))
    assert any("judged" in key and key.endswith("ws_all") for key in records["summary"])
    assert any("study/comparison/" in key for key in records["summary"])
    assert any(name.endswith(".png") for name in map(str, (run / "files" / "media").rglob("*")))
    assert any("teacher" in key for key in records["config"])


def read_back(path):
    """Keys of the configuration and summary in an offline run's file: protocol buffers in a LevelDB log."""
    from wandb.proto import wandb_internal_pb2

    raw, place, block = path.read_bytes(), 7, 32768
    found, parts = {"config": set(), "summary": set()}, b""
    while place + 7 <= len(raw):
        if block - place % block < 7:  # too short for a header: padding
            place += block - place % block
        _, length, kind = struct.unpack_from("<IHB", raw, place)
        parts += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            found["config"] |= {u.key for u in [*record.run.config.update, *record.config.update]}
            found["summary"] |= {u.key or "/".join(u.nested_key) for u in record.summary.update}
            found["summary"] |= {i.key or "/".join(i.nested_key) for i in record.history.item}
    return found


def test_one_folder_alone(folders, command, parsed, tmp_path):
    words = ["report", "--runs", f"[{folders / 'explained'}]", "--out", tmp_path / "one.html", "--quiet", "true"]
    assert command(*words) == 0
    assert [h.partition(":")[0] for h in parsed((tmp_path / "one.html").read_text()).headings] == ["Explanation"]


def test_copies_in_an_ensemble_and_evaluations_of_a_study_are_not_reported(folders, command, parsed, tmp_path):
    shutil.copytree(folders / "teacher", tmp_path / "ensemble")
    (tmp_path / "ensemble" / Run.ENSEMBLE).write_text("{}")
    shutil.copytree(folders / "study", tmp_path / "study")
    shutil.copytree(folders / "judged", tmp_path / "study" / "runs" / "judged")
    assert command("report", "--runs", f"[{tmp_path}]", "--out", tmp_path / "r.html", "--quiet", "true") == 0
    assert parsed((tmp_path / "r.html").read_text()).headings == ["At a glance", "Study: study"]


def test_nothing_to_report_is_one_line(command, tmp_path, capfd):
    assert command("report", "--runs", f"[{tmp_path}]", "--out", tmp_path / "r.html") == 2
    assert "nothing to report" in capfd.readouterr().err
    assert command("report", "--runs", f"[{tmp_path}/no]", "--out", tmp_path / "r.html") == 2
    assert "no such folder" in capfd.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_what_is_damaged_is_named_and_left_out(folders, command, parsed, tmp_path, capfd):
    for name in ("teacher", "<photons> & co", "judged", "explained"):
        shutil.copytree(folders / name, tmp_path / name)
    (tmp_path / "teacher" / Run.RECORD).write_text('{"format": 2, "mod')
    (tmp_path / "explained" / "explain.json").write_text("[]")
    samples = tmp_path / "judged" / "samples.npz"
    samples.write_bytes(samples.read_bytes()[:2000])
    capfd.readouterr()
    assert command("report", "--runs", tmp_path, "--out", tmp_path / "r.html", "--quiet", "true") == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("calosim: ")]
    assert all(line.endswith("; left out") for line in said)
    assert {name for name in ("run.json", "samples.npz", "explained") if any(name in line for line in said)} == {
        *("run.json", "samples.npz", "explained")
    }
    assert parsed((tmp_path / "r.html").read_text()).headings == ["What was trained", "Training curves"]
    assert "&lt;photons&gt;" in (tmp_path / "r.html").read_text()
