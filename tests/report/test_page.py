"""The page stands alone: links lead somewhere, pictures decode, nothing is fetched, and a browser agrees."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess

import pytest
from PIL import Image

from calosim.report.report import Picture, Section, name_apart, render

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
