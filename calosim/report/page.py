"""Sections of the report and the page that they make, ``page.html``; all HTML is there, but for rendered Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markdown import markdown
from markupsafe import Markup

from calosim.plots.style import DPI

__all__ = ["Picture", "Section", "name_apart", "render"]

#: What is wider than the window scrolls, by keyboard too.
SCROLLING = '<div class="table" tabindex="0" role="region" aria-label="table">'


#: How the lines of tables begin that are no model's.
BESIDE = ("floor", "trivial", "control", "power")


@dataclass(frozen=True)
class Picture:
    """A PNG with its alternative text and its caption."""

    png: bytes
    alt: str
    caption: str

    @property
    def width(self) -> int:
        """How wide it is shown where there is room, in CSS pixels: letters have one size in all pictures."""
        return round(int.from_bytes(self.png[16:20]) * 96 / DPI)

    @property
    def base64(self) -> Markup:
        """The picture as text, which needs no escaping."""
        return Markup(base64.b64encode(self.png).decode())


@dataclass
class Section:
    """A section of the page: its anchor, its title, and pieces, each a macro of ``page.html`` with its arguments."""

    key: str
    title: str
    pieces: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    @property
    def pictures(self) -> list[Picture]:
        """All pictures in order."""
        return [picture for name, (first, *_) in self.pieces if name == "figures" for picture in first]

    def markdown(self, words: str) -> None:
        """Adds Markdown with tables, without its title; its headings go below this section's."""
        # Names of runs are text, whatever characters are in them.
        lines = [line for line in html.escape(words, quote=False).splitlines() if not line.startswith("# ")]
        lines = ["#" + line if line.startswith("#") else line for line in lines]
        rendered = markdown("\n".join(lines), extensions=["tables"])
        # Tables as the macro writes them.
        rendered = rendered.replace("<table>", f"{SCROLLING}<table>").replace("</table>", "</table></div>")
        rendered = re.sub(r"<th(?=[ >])", '<th scope="col"', rendered)
        # What stands beside the models steps back, and so do intervals.
        rendered = re.sub(rf"<tr>(\s*<td[^>]*>(?:{'|'.join(BESIDE)}))", r'<tr class="beside">\1', rendered)
        rendered = re.sub(r"(?<= )(\[[-+.\d]+, [-+.\d]+\])(?=</td>)", r"<small>\1</small>", rendered)
        self.pieces.append(("markup", (Markup(rendered),)))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table."""
        self.pieces.append(("table", (head, rows)))

    def figures(self, *pictures: Picture | None) -> None:
        """Adds a picture, or several side by side; what could not be drawn is left out."""
        if drawn := tuple(picture for picture in pictures if picture is not None):
            self.pieces.append(("figures", (drawn,)))

    def fold(self, summary: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table that is shown when asked for."""
        self.pieces.append(("fold", (summary, head, rows)))

    def details(self, summary: str, *texts: str) -> None:
        """Adds texts that are shown when asked for."""
        self.pieces.append(("details", (summary, texts)))


def name_apart(sections: Sequence[Section]) -> None:
    """Numbers the anchors of sections about folders of one name in different places."""
    seen: set[str] = set()
    for section in sections:
        key, number = section.key, 1
        while section.key in seen:
            number += 1
            section.key = f"{key}-{number}"
        seen.add(section.key)


def render(title: str, lead: str, sections: Sequence[Section], foot: str = "") -> str:
    """The page as HTML.

    Args:
        title: Its title.
        lead: A line below the title.
        sections: Its sections, with anchors that differ.
        foot: A line at the end.
    """
    template = resources.files("calosim.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(title=title, lead=lead, sections=sections, foot=foot)
