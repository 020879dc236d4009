"""The report is one page that stands alone: links lead somewhere, pictures decode, nothing is fetched, and a browser agrees."""

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
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from calosim.__main__ import main

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--trainer.callbacks", "[]"]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What of a page matters here."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str]] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []
        self._heading = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self._heading = tag == "h2"
        if tag == "a":
            self.links.append(values["href"])
        if tag == "img":
            self.images.append(values)
        if tag in ("script", "iframe") or (tag == "link" and not values["href"].startswith("data:")):
            self.fetched.append(tag)

    def handle_data(self, data):
        if self._heading:
            self.headings.append(data)
            self._heading = False


@pytest.fixture(scope="module")
def folders(root_file, tmp_path_factory):
    """Runs of a teacher and a photon-sum model by the real command, the teacher's loss being logged, and an evaluation."""
    folder = tmp_path_factory.mktemp("report")
    data = ["--data.files", str(root_file), "--data.batch_size", "64", *SMALL]
    teacher = ["--model.hidden", "[8,8]", "--model.transforms", "1", "--model.bins", "4"]
    teacher += [
        "--trainer.log_every_n_steps",
        "1",
        "--trainer.callbacks+",
        "lightning.pytorch.callbacks.ModelCheckpoint",
    ]
    names = ("--run", str(folder / "teacher")), ("--run", str(folder / "<photons> & co"))
    assert main(["fit", "-c", str(CONF / "teacher.yaml"), *data, *teacher, *names[0]]) == 0
    photons = ["--model.hidden", "[8]", "--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"]
    assert main(["fit", "-c", str(CONF / "photons.yaml"), *data, *photons, *names[1]]) == 0
    checkpoints = [str(next((folder / n).rglob("*.ckpt"))) for n in ("teacher", "<photons> & co")]
    judge = ["--rows", "20", "--runs", "1", "--responses", "2", "--quiet", "true", "--out", str(folder / "judged")]
    assert main(["evaluate", "--shape", checkpoints[0], "--photons", json.dumps(checkpoints[1:]), *judge]) == 0
    (folder / "study").mkdir()
    (folder / "study" / "comparison.md").write_text("# Title\n\n| | all |\n|---|---|\n| GD | **1.61** |\n")
    shutil.copytree(folder / "study", folder / "other" / "study")  # two of one name
    (folder / "study" / "comparison.csv").write_text("mode,metric,model,mean\nshape,ws,GD,1.61\n")
    return folder


@pytest.fixture(scope="module")
def page(folders):
    out = folders / "report.html"
    assert (
        main(["report", "--runs", f"[{folders}]", "--out", str(out), "--title", "A <b>title</b>", "--quiet", "true"])
        == 0
    )
    return out


def test_the_page_stands_alone(page):
    text = page.read_text()
    parsed = Page(text)
    assert not parsed.fetched
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", text)
    assert parsed.links
    assert {link.removeprefix("#") for link in parsed.links} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert len(parsed.images) >= 4
    for image in parsed.images:
        head, _, data = image["src"].partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert min(picture.size) > 100
        assert len(image["alt"]) > 10
    # What users name things does not become markup.
    assert "A &lt;b&gt;title&lt;/b&gt;" in text
    assert "&lt;photons&gt; &amp; co" in text
    assert "<photons>" not in text


def test_sections_are_those_with_data(page, folders, tmp_path):
    headings = Page(page.read_text()).headings
    assert headings[:2] == ["What was trained", "Training curves"]
    assert [h.partition(":")[0] for h in headings[2:]] == ["Evaluation", "Study", "Study"]
    assert "<strong>1.61</strong>" in page.read_text()
    assert (
        main(["report", "--runs", f"[{folders / 'judged'}]", "--out", str(tmp_path / "one.html"), "--quiet", "true"])
        == 0
    )
    assert [h.partition(":")[0] for h in Page((tmp_path / "one.html").read_text()).headings] == ["Evaluation"]


def test_nothing_to_report_is_one_line(tmp_path, capfd):
    assert main(["report", "--runs", f"[{tmp_path}]", "--out", str(tmp_path / "r.html")]) == 2
    assert "nothing to report" in capfd.readouterr().err
    assert main(["report", "--runs", f"[{tmp_path}/no]", "--out", str(tmp_path / "r.html")]) == 2
    assert "no such folder" in capfd.readouterr().err
    assert not (tmp_path / "r.html").exists()


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
    out = tmp_path / "report.html"
    words = ["report", "--runs", f"[{folders}]", "--out", str(out), "--wandb", "tests", "--quiet", "true"]
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
