"""Folders to report about: two trainings, an evaluation, studies of one name and an explanation; and their page."""

from __future__ import annotations

import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from calosim.io import write_json


class Parsed(HTMLParser):
    """What of a page matters here."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str]] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []
        self.scrolling: list[str] = []
        self._heading = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.scrolling += [tag] if values.get("tabindex") == "0" else []
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


@pytest.fixture(scope="session")
def parsed():
    """Parses a page: ``parsed(text)``."""
    return Parsed


@pytest.fixture(scope="session")
def png() -> bytes:
    """A picture."""
    stream = io.BytesIO()
    Image.new("RGB", (120, 120), "navy").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def folders(run_folders, command, png, once) -> Path:
    """The folder of all that is reported; not to be changed."""

    def make(folder: Path) -> None:
        shutil.copytree(run_folders["teacher"], folder / "teacher")
        shutil.copytree(run_folders["photons"], folder / "<photons> & co")
        models = ["--shower", folder / "teacher", "--photons", json.dumps([str(folder / "<photons> & co")])]
        judge = ["--rows", 20, "--runs", 1, "--responses", 2, "--quiet", "true"]
        assert command("evaluate", *models, *judge, "--out", folder / "judged") == 0
        for place in (folder / "study", folder / "other" / "study"):  # two of one name
            place.mkdir(parents=True)
            (place / "comparison.md").write_text("# Title\n\n| | all |\n|---|---|\n| GD | **1.61** |\n")
        (folder / "study" / "comparison.csv").write_text("mode,metric,model,mean\nshape,ws,GD,1.61\n")
        explained = folder / "explained"
        explained.mkdir()
        (explained / "explain.md").write_text("Ranks.\n\n| rank | photon sum |\n|---|---|\n| 1 | \\|pz\\| 5 |\n")
        for name in ("photon_sum_bar", "photon_sum_beeswarm", "photon_uncertainty"):
            (explained / f"{name}.png").write_bytes(png)
        write_json(explained / "explain.json", {"targets": {"photon_sum": {}}})

    return once("report", make)


@pytest.fixture(scope="session")
def page(folders, command, once) -> Path:
    """The page about them."""

    def make(folder: Path) -> None:
        words = ["--runs", f"[{folders}]", "--out", folder / "report.html", "--title", "A <b>title</b>"]
        assert command("report", *words, "--quiet", "true") == 0

    return once("page", make) / "report.html"
