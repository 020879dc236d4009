"""Draws the pictures of the pages as SVG: the chain, the tree of splits, the house. `python docs/make_drawings.py`

All text stands on filled boxes, and lines are a middle grey: the drawings are read on light and on dark pages. Colors are
Okabe and Ito's, darkened until white text has a contrast of at least 4.5 to 1.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

BLUE, GREEN, RED, PURPLE, SLATE = "#0066a1", "#00734f", "#b34700", "#9c4a7c", "#4a5560"
LINE = "#8a8f98"
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"


def drawing(width: int, height: int, title: str, parts: list[str]) -> str:
    """An SVG of parts.

    Args:
        width: In pixels.
        height: In pixels.
        title: What screen readers say.
        parts: Elements.
    """
    arrow = f"<path d='M0,0 L8,4 L0,8 z' fill='{LINE}'/>"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' {FONT}>"
    marker = (
        f"<defs><marker id='a' markerWidth='8' markerHeight='8' refX='7' refY='4' orient='auto'>{arrow}</marker></defs>"
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", marker, *parts, "</svg>\n"])


def box(x: float, y: float, width: float, height: float, color: str, title: str, *lines: str) -> str:
    """A filled box with a bold title and smaller lines below it."""
    middle = x + width / 2
    top = y + height / 2 - 8.5 * len(lines) + 5
    parts = [f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='8' fill='{color}'/>"]
    parts.append(_text(middle, top, 14, title, bold=True))
    parts += [_text(middle, top + 17 * (k + 1), 11.5, line) for k, line in enumerate(lines)]
    return "\n".join(parts)


def _text(x: float, y: float, size: float, text: str, bold: bool = False, color: str = "#fff") -> str:
    weight = " font-weight='bold'" if bold else ""
    return f"<text x='{x:g}' y='{y:g}' font-size='{size}' text-anchor='middle' fill='{color}'{weight}>{escape(text)}</text>"


def _light(share: float) -> str:
    """The color of a pixel with that share of the brightest one's photons: from night through violet to yellow."""
    stops = [(22, 20, 43), (110, 40, 120), (240, 170, 60)]
    place = 2 * share**0.5
    low, high = (stops[0], stops[1]) if place < 1 else (stops[1], stops[2])
    mix = place - (place >= 1)
    return "#" + "".join(f"{round(a + (b - a) * mix):02x}" for a, b in zip(low, high, strict=True))


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head at its end."""
    return (
        f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{LINE}' stroke-width='2' marker-end='url(#a)'/>"
    )


def chain() -> str:
    """From responses to a judged simulation."""
    y, h = 60, 74
    parts = [
        box(0, y, 150, h, SLATE, "Monte Carlo", "primaries and their", "images of photons"),
        box(196, 0, 176, h, BLUE, "photon-sum model", "how many photons"),
        box(196, 120, 176, h, BLUE, "shower model", "where they go"),
        box(418, y, 150, h, GREEN, "fast simulation", "images for new", "primaries"),
        box(614, 0, 186, h, RED, "judgement", "beside floor, trivial", "model and C2ST"),
        box(614, 120, 186, h, PURPLE, "export", "ONNX for ALICE O2", "and others"),
    ]
    for x1, x2 in ((150, 192), (568, 610)):
        parts += [arrow(x1, y + 28, x2, 40), arrow(x1, y + 46, x2, 154)]
    parts += [arrow(372, 40, 414, y + 28), arrow(372, 154, 414, y + 46)]
    return drawing(
        800,
        194,
        "Monte Carlo responses train two models, which are a fast simulation; it is judged and exported",
        parts,
    )


def splits() -> str:
    """A face of 4 x 4 pixels halved twice, with its counts."""
    face = [[0, 1, 4, 1], [0, 2, 9, 3], [0, 0, 2, 1], [0, 0, 0, 0]]  # rows from the top, columns along x

    def total(columns: range, rows: range) -> int:
        return sum(face[r][c] for r in rows for c in columns)

    def grid(x: float, y: float, size: float, columns: range, rows: range, label: str) -> list[str]:
        cell = size / 4
        found = []
        for r in range(4):
            for c in range(4):
                inside = c in columns and r in rows
                shade = _light(face[r][c] / 9) if inside else "none"
                found.append(
                    f"<rect x='{x + c * cell:g}' y='{y + r * cell:g}' width='{cell - 1:g}' height='{cell - 1:g}' "
                    f"fill='{shade}' stroke='{LINE}' stroke-width='.7'/>"
                )
        found.append(
            f"<rect x='{x + size / 2 - 58:g}' y='{y + size + 8:g}' width='116' height='24' rx='6' fill='{SLATE}'/>"
        )
        found.append(_text(x + size / 2, y + size + 24.5, 12.5, label, bold=True))
        return found

    whole, left, right, top, bottom = range(4), range(2), range(2, 4), range(2), range(2, 4)
    n = total(whole, whole)
    parts = grid(20, 94, 96, whole, whole, f"{n} photons")
    places = [(left, whole, 232, 20), (right, whole, 232, 178)]
    for columns, rows, x, y in places:
        parts += [arrow(136, 150, x - 30, y + 56), *grid(x, y, 96, columns, rows, f"{total(columns, rows)} of {n}")]
    last = [
        (left, top, 0, places[0]),
        (left, bottom, 1, places[0]),
        (right, top, 2, places[1]),
        (right, bottom, 3, places[1]),
    ]
    for columns, rows, number, (_, _, x, y) in last:
        row = 4 + number * 80
        parts.append(arrow(x + 116, y + 56, 442, row + 26))
        some, of = total(columns, rows), total(columns, whole)
        parts.append(box(450, row, 150, 54, GREEN if some else SLATE, f"{some} of {of}"))
        parts.append(arrow(600, row + 27, 640, row + 27))
        said = ("split on,", "down to pixels") if some else ("dark:", "nothing to say")
        parts.append(box(648, row, 152, 54, BLUE if some else SLATE, *said))
    return drawing(
        800,
        330,
        "The face is halved again and again; each node says how many of its photons go to its first half",
        parts,
    )


def house() -> str:
    """The layers, highest first, and what stands beside."""
    layers = [
        (SLATE, "cli", "subcommands, by LightningCLI and jsonargparse"),
        (PURPLE, "report · export · explain · studies", "what is made of results"),
        (RED, "evaluation", "judging: floors, intervals, C2ST"),
        (GREEN, "simulation", "models put to use"),
        (BLUE, "models", "what is trained, and its losses"),
        (BLUE, "representations · flows", "what is modeled of an image, and how"),
        (GREEN, "data · montecarlo · metrics", "files, the toy Monte Carlo, distances"),
        (SLATE, "plots · detectors · particles · rng · io · runs", "pictures, geometry, names, keyed draws, files"),
    ]
    parts = []
    for k, (color, rooms, said) in enumerate(layers):
        parts.append(box(0, 50 * k, 560, 44, color, rooms, said))
    parts.append(arrow(590, 10, 590, 390))
    parts.append(box(620, 0, 180, 44, SLATE, "imports point down"))
    parts.append(box(620, 150, 180, 94, SLATE, "conf · callbacks", "beside the package:", "only YAML knows both"))
    return drawing(800, 396, "Rooms of the package in layers; imports point down only", parts)


def main(folder: Path) -> None:
    """Writes the drawings into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (chain, splits, house):
        (folder / f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parent / "_static")
