"""One self-contained HTML page from any set of run folders: trainings, responses, metrics, studies, explanations.

What is reported follows from what a folder holds: a training (``config.yaml`` and ``run.json``), an evaluation
(``evaluation.json``), a study (``comparison.md``), an explanation (``explain.json``). Sections without data are left out.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PAGE", "Section"]

#: What is wider than the window scrolls, by keyboard too.
TABLE = '<div class="table" tabindex="0" role="region" aria-label="table">'


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark;
        --ink: #1c2430; --soft: #5a6675; --paper: #fff; --card: #f5f7fa; --line: #d9dfe7;
        --accent: #0b62a8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --soft: #9aa7b7; --paper: #12161c; --card: #1b212a; --line: #303a47; --accent: #7cb8ee }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 1rem/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .25rem }
h2 { margin: 2.75rem 0 .75rem; padding-top: .5rem; border-top: 2px solid var(--line) }
h3 { margin: 1.75rem 0 .5rem }
h2, h3, h4 { scroll-margin-top: 1rem }
p.lead, figcaption, .soft { color: var(--soft) }
a { color: var(--accent) }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: .75rem 1rem; margin: 1rem 0; list-style: none;
         background: var(--card); border-radius: .5rem }
.table { overflow-x: auto; margin: .75rem 0 }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
th { color: var(--soft); font-weight: 600 }
td:first-child { white-space: normal; min-width: 9rem }
p.lead { overflow-wrap: anywhere }
figure { margin: 1rem 0 1.5rem; overflow-x: auto }
figure img { width: 100%; min-width: 36rem; height: auto; max-width: 60rem; background: #fff;
             border: 1px solid var(--line); border-radius: .4rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 1.5rem }
.pair figure img { min-width: 0 }
figcaption { font-size: .88rem; margin-top: .35rem }
pre { overflow-x: auto; padding: .75rem; background: var(--card); border-radius: .4rem; font-size: .8rem }
details summary { cursor: pointer; color: var(--accent) }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --card: #fff; --line: #bbb }
  body { max-width: none; padding: 0; font-size: 10pt } figure img { min-width: 0 }
  nav, details { display: none }
  .table, figure { overflow: visible } table { font-size: 7.5pt } .pair { grid-template-columns: 1fr 1fr }
  th, td { padding: .15rem .4rem; white-space: normal } td:first-child { min-width: 5rem }
  figure, tr { break-inside: avoid } h2, h3, h4, h5 { break-after: avoid }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<nav aria-label="Contents"><ul>
{%- for section in sections %}
<li><a href="#{{ section.key }}">{{ section.title }}</a></li>
{%- endfor %}
</ul></nav>
<main>
{%- for section in sections %}
<section id="{{ section.key }}">
<h2>{{ section.title }}</h2>
{{ section.body | safe }}
</section>
{%- endfor %}
</main>
</body>
</html>
"""


@dataclass
class Section:
    """A section of the page: its anchor, its title, and its HTML, added piece by piece."""

    key: str
    title: str
    body: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)

    def text(self, words: str, tag: str = "p") -> None:
        """Adds a paragraph or heading."""
        self.body += f"<{tag}>{html.escape(words)}</{tag}>\n"

    def markdown(self, words: str) -> None:
        """Adds Markdown with tables; its headings go below this section's."""
        from markdown import markdown

        # Names of runs are text, whatever characters are in them.
        lines = ("#" + line if line.startswith("#") else line for line in html.escape(words, quote=False).splitlines())
        rendered = markdown("\n".join(lines), extensions=["tables"])
        self.body += (
            rendered.replace("<table>", f"{TABLE}<table>")
            .replace("</table>", "</table></div>")
            .replace("<th", '<th scope="col"')
            .replace('<th scope="col"ead>', "<thead>")
            + "\n"
        )

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table."""
        cells = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head)
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>\n" for row in rows)
        self.body += f"{TABLE}<table>\n<tr>{cells}</tr>\n{lines}</table></div>\n"

    def picture(self, png: bytes, alt: str, caption: str) -> None:
        """Adds a picture with its alternative text and caption."""
        self.pictures[caption] = png
        data = base64.b64encode(png).decode()
        self.body += (
            f'<figure tabindex="0"><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
        )
