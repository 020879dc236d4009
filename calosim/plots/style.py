"""What all pictures share: their own settings, colors, the logarithmic axis without powers, files that are whole or not there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import wraps
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, ParamSpec

from calosim.io import writing

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["BAND", "COLORS", "DPI", "Look", "looks", "picture", "plain_log", "save", "typeset"]

Given = ParamSpec("Given")

#: Models, in the order in which they are named; told apart by the color-blind too (Okabe and Ito, https://jfly.uni-koeln.de/color).
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: What models are held against has no color: the Monte Carlo is a surface, its floors are black, the trivial model is grey.
BAND, FLOOR, TRIVIAL = "0.85", "black", "0.5"
#: Dots in an inch of a picture.
DPI = 130


class Look(NamedTuple):
    """How a candidate is drawn, the same in every picture."""

    color: str
    line: str
    marker: str


def looks(titles: Iterable[str]) -> dict[str, Look]:
    """The look of each candidate by its title: floors and trivial models have their own, models theirs in order.

    >>> looks(["GD", "floor (Monte Carlo, other seed)", "DG"])["DG"].color == COLORS[1]
    True
    """
    models, found = count(), {}
    for title in titles:
        if title.startswith("floor"):
            found[title] = Look(FLOOR, "-." if "same photon sums" in title else "--", "_")
        elif title.startswith(("trivial", "power")):
            found[title] = Look(TRIVIAL, ":", "x" if title.startswith("trivial") else "+")
        else:
            number = next(models)
            found[title] = Look(COLORS[number % len(COLORS)], "-", MARKERS[number % len(MARKERS)])
    return found


def plain_log(axis: Axis, digits: tuple[float, ...] = (1, 1.5, 2, 3, 5, 7)) -> None:
    """Labels a logarithmic axis with plain numbers: 20 and 0.5 rather than powers of ten, which a short one may lack."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def typeset(symbol: str) -> str:
    """A particle's symbol as the drawing program sets it: Unicode has no capital S below the line."""
    return symbol.replace("K⁰S", r"K$_\mathrm{S}^{0}$").replace("K⁰L", r"K$_\mathrm{L}^{0}$")


def picture(draw: Callable[Given, Path]) -> Callable[Given, Path | None]:
    """Draws with matplotlib's own settings, whatever the user's are; what cannot be drawn costs a line, and no work.

    Args:
        draw: Draws into the file that is its last argument, and returns it.

    Returns:
        A function that does the same, and returns None where that fails; then there is no file, not even an older one.
    """

    @wraps(draw)
    def drawn(*args: Given.args, **kwargs: Given.kwargs) -> Path | None:
        try:
            import matplotlib

            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                return draw(*args, **kwargs)
        except Exception as error:  # fonts, backends, LaTeX and disks fail with a dozen types
            path = Path(str(kwargs.get("path", args[-1] if args else "")))
            if path.is_file():
                path.unlink()
            said = " ".join(str(error).split())[:200]
            print(f"calosim: {path}: was not drawn ({type(error).__name__}: {said})", file=sys.stderr)
            return None

    return drawn


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure."""
    with writing(path) as part:
        figure.savefig(part, dpi=DPI)
    return path
