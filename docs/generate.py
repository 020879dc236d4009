"""The reference pages that are read from the code: commands, settings, metrics, detectors and the Python interface.

`python docs/generate.py FOLDER` writes them; `make docs` does that by itself.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"

#: Rooms of the package in the order of the way of the data; what is not named here comes behind.
ROOMS: tuple[str, ...] = (
    *("data", "montecarlo", "representations", "flows", "models", "metrics", "simulation"),
    *("evaluation", "studies", "export", "explain", "report"),
)


def write(folder: Path) -> None:
    """Writes all pages into a folder; what the code no longer has goes.

    Args:
        folder: Where the pages of the reference are; those written here begin with an underscore, or are in ``api``.
    """
    pages = {
        "_commands.md": commands(),
        "_settings.md": settings(),
        "_metrics.md": metrics(),
        "_detectors.md": detectors(),
    }
    pages |= {f"api/{name}.rst": text for name, text in interface()}
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for old in {*folder.glob("_*.md"), *folder.glob("api/*")} - {folder / name for name in pages}:
        old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # what is as it was is not built again
            path.write_text(text, encoding="utf-8")


def commands() -> str:
    """What every subcommand says of itself; of trainings that share their options, what is their own."""
    from calosim.__main__ import SUBCOMMANDS

    told = {name: help_of(name) for name in SUBCOMMANDS}
    options = {name: re.split(r"\n(?=  -|\S)", text) for name, text in told.items()}
    for name, (usage, *own) in options.items():
        others = [text for text in own if text not in options["fit"]]
        if name != "fit" and len(others) < len(own) / 2:
            told[name] = "\n".join([usage, "", "The options of fit, and", "", *others])
    return "\n".join(f"## {name}\n\n```text\n{text}\n```\n" for name, text in told.items())


def help_of(*words: str) -> str:
    """What ``calosim WORDS --help`` prints, at a width that fits a page."""
    from calosim.__main__ import main

    told, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return told.getvalue().replace(str(ROOT) + os.sep, "").rstrip()


def settings() -> str:
    """Every YAML file in ``conf``, folder by folder."""
    parts: list[str] = []
    for folder in [CONF, *sorted(path for path in CONF.iterdir() if path.is_dir())]:
        files = sorted(folder.glob("*.yaml") if folder == CONF else folder.rglob("*.yaml"))
        if files:
            parts.append(f"## {folder.relative_to(ROOT).as_posix()}\n")
        for file in files:
            name = file.relative_to(ROOT).as_posix()
            parts.append(f"### {name}\n\n```yaml\n{file.read_text(encoding='utf-8').rstrip()}\n```\n")
    return "\n".join(parts)


def metrics() -> str:
    """The table of the metrics, in the words of the code."""
    from calosim.metrics.registry import definition_table

    return definition_table() + "\n"


def detectors() -> str:
    """The table of the detectors."""
    from calosim.detectors import DETECTORS
    from calosim.io import markdown_table

    header = (
        "name",
        "pixels, x and y",
        "pitch, cm",
        "face, cm",
        "front face at z, cm",
        "depth, cm",
        "absorber",
        "towers in O2",
    )
    rows = [
        (
            f"`{d.name}` ({d.title})",
            f"{d.shape[0]} x {d.shape[1]}",
            f"{d.pitch:g}",
            f"{d.size[0]:g} x {d.size[1]:g}",
            f"{d.front_z[0]:+g}, {d.front_z[1]:+g}",
            f"{d.depth:g}",
            d.absorber,
            d.towers,
        )
        for d in DETECTORS.values()
    ]
    return markdown_table(header, rows) + "\n"


def interface() -> Iterator[tuple[str, str]]:
    """Pages of the Python interface: one for each room of the package, with all of its modules that offer something."""
    package = importlib.import_module("calosim")
    found = {info.name: info.ispkg for info in pkgutil.iter_modules(package.__path__)}
    rooms = [n for n in ROOMS if found.get(n)] + sorted(
        n for n, is_room in found.items() if is_room and n not in {*ROOMS, "cli", "conf"}
    )
    single = [f"calosim.{n}" for n, is_room in found.items() if not is_room and n != "__main__"]
    yield "calosim", _page("calosim", [], _listed(package))
    for room in rooms:
        top = importlib.import_module(f"calosim.{room}")
        yield (
            room,
            _page(f"calosim.{room}", [f"calosim.{room}.{info.name}" for info in pkgutil.iter_modules(top.__path__)]),
        )
    yield "modules", _page("single modules", single, intro="What the rooms share.")
    callbacks = importlib.import_module("callbacks")
    yield (
        "callbacks",
        _page("callbacks", [f"callbacks.{info.name}" for info in pkgutil.iter_modules(callbacks.__path__)]),
    )


def _listed(package: ModuleType) -> str:
    """Links to what a package offers by itself."""
    lines = []
    for name in package.__all__:
        thing = getattr(package, name)
        if not name.startswith("_"):
            role = "class" if inspect.isclass(thing) else "func"
            said = (inspect.getdoc(thing) or "").partition("\n")[0]
            lines.append(f"* :{role}:`~{thing.__module__}.{thing.__qualname__}`: {said}")
    return "\n".join(lines)


def _page(title: str, modules: list[str], more: str = "", intro: str = "") -> str:
    """A page of modules, each with what is in its ``__all__``."""
    if title.startswith("calosim") or title == "callbacks":
        intro = inspect.getdoc(importlib.import_module(title)) or ""
    parts = [title, "=" * len(title), "", intro, "", more, ""]
    for name in modules:
        parts += [name, "-" * len(name), "", f".. automodule:: {name}", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    write(Path(sys.argv[1]))
