"""The README and the pages of docs/ tell the truth: commands parse, links lead somewhere, messages exist, tutorials run."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

import calosim
from calosim.__main__ import SUBCOMMANDS, main
from calosim.cli.tools import check
from calosim.data.record import FEATURES
from calosim.detectors import DETECTORS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GENERATED = re.compile(r"reference/(_|api/)|_build/")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(page for page in DOCS.rglob("*.md") if not GENERATED.search(page.relative_to(DOCS).as_posix()))
#: Pages whose blocks run from top to bottom, as a reader would run them.
LESSONS = [
    *sorted((DOCS / "tutorials").glob("*.md")),
    *(DOCS / "start" / f"{name}.md" for name in ("own-data", "python")),
]
LESSONS.append(ROOT / "README.md")
#: What makes a reader's command a small one; later options win.
SMALL = {
    "simulate": "--responses_per_primary 6 --quiet",
    "fit": "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 "
    "--trainer.enable_model_summary false --quiet",
    "evaluate": "--rows 30 --runs 1 --responses 2 --classifier false --quiet",
    "generate": "--responses 2 --quiet",
    "convert": "--quiet",
    "report": "--quiet",
    "compare": "--dry-run --quiet",
    "explain": "--rows 2 --background 4 --surrogate_rows 20 --surrogate_epochs 1 --uncertainty_rows 20 --quiet",
}


class Block(NamedTuple):
    language: str
    text: str


def named(pages: list[Path], slow: tuple[str, ...] = ()) -> list:
    """Pages as parameters, called by their paths; slow ones by their names."""
    marks = {page: [pytest.mark.slow] if page.stem in slow else [] for page in pages}
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=marks[page]) for page in pages]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, with their languages."""
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)]


def own_file(block: Block) -> tuple[str, str] | None:
    """The name and the text of a file that a block shows, told by a comment in its first line."""
    found = re.match(r"# ([\w-]+\.(?:py|yaml))\n", block.text)
    return (found[1], block.text) if found else None


def lines_of(text: str) -> Iterator[list[str]]:
    """The command lines of a block as words, without comments; continued ones are one."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def written(page: Path) -> list[list[str]]:
    """All command lines of a page: those of its blocks, and `calosim SUBCOMMAND ...` in its sentences and tables."""
    text = page.read_text("utf-8")
    found = [words for block in blocks(page) if block.language in ("bash", "text") for words in lines_of(block.text)]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return found + [shlex.split(" ".join(said.split())) for said in re.findall(r"`((?:calosim|make) [^`]+)`", prose)]


def commands(page: Path) -> list[list[str]]:
    """The words behind `calosim` of every command line of a page."""
    found = []
    for words in written(page):
        if "calosim" in words[:1] or ("--" in words and "calosim" in words):
            rest = words[words.index("calosim") + 1 :]
            found.append(rest[: rest.index("&&")] if "&&" in rest else rest)
    return found


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """A working folder as a reader has it: with conf/, and with all files that pages show."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    for page in PAGES:
        for name, text in filter(None, map(own_file, blocks(page))):
            (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def parse(words: list[str]) -> None:
    """Has the command's own parser read a line."""
    subcommand, *rest = words
    rest = ["conf/teacher.yaml" if re.fullmatch(r"(runs|demo)/.*config\.yaml", word) else word for word in rest]
    if subcommand == "submit":
        assert main([subcommand, *rest, *(["--dry-run"] if "--dry-run" not in rest else [])]) == 0
    else:
        with suppress(SystemExit):  # of a help
            check(subcommand, rest)


@pytest.mark.parametrize("page", named([page for page in PAGES if commands(page)]))
def test_every_command_is_one_that_the_parser_takes(page, reader):
    for words in commands(page):
        if words[0] == "SUBCOMMAND" or words[0] in ("--help", "--version"):
            continue
        assert words[0] in SUBCOMMANDS, words
        in_full = not re.search(r"[A-Z]{3}|\.\.\.|--help", " ".join(words)) and len(words) > 1
        if in_full:
            parse(words)


@pytest.mark.parametrize("page", named([page for page in PAGES if any(w[0] == "make" for w in written(page))]))
def test_every_make_target_is_there(page):
    targets = set(re.findall(r"^([a-z-]+)(?=[ a-z-]*:)", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named_ones = {words[1] for words in written(page) if words[0] == "make" and len(words) > 1}
    assert named_ones <= targets | {"test-newest"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.M)
    }


@pytest.mark.parametrize("page", named(PAGES))
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```\w.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:", "mailto:")):
            continue
        to = (page.parent / path).resolve() if path else page
        assert to.exists() or to.with_suffix(".svg").exists(), target
        assert not anchor or anchor in anchors(to), target


@pytest.mark.parametrize("page", named(PAGES))
def test_every_file_of_the_repository_that_is_named_is_there(page):
    for name in re.findall(r"`((?:conf|calosim|callbacks|tests|benchmarks|docs)/[\w./-]+)`", page.read_text("utf-8")):
        if "NAME" not in name and "zem" not in name:
            assert (ROOT / name).exists(), name


def test_every_reference_of_a_docstring_resolves():
    lost = []
    role = r":(?:class|func|meth|attr|data|mod):`~?((?:calosim|callbacks)[\w.]*)`"
    for folder in ("calosim", "callbacks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for target in re.findall(role, file.read_text("utf-8")):
                if not resolves(target):
                    lost.append(f"{file.relative_to(ROOT)}: {target}")
    assert not lost


def resolves(target: str) -> bool:
    """Whether a dotted name is a module, or something in one, down to a field or an attribute of a class."""
    parts = target.split(".")
    for k in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for name in parts[k:]:
            if not hasattr(thing, name) and name not in getattr(thing, "__annotations__", {}):
                return name in getattr(thing, "__dataclass_fields__", {})
            thing = getattr(thing, name, None)
        return True
    return False


def test_messages_that_are_explained_are_those_of_the_code():
    code = "".join(file.read_text("utf-8") for file in sorted((ROOT / "calosim").rglob("*.py")))
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)  # strings that go on in the next line
    text = (DOCS / "errors.md").read_text("utf-8")
    messages = [m for m in re.findall(r"^\*\*`([^`]+)`\*\*$", text, re.M) if not m.startswith("--")]
    pieces = [
        piece.strip(" ;,") for message in messages for piece in re.split(r"\.\.\.|(?<=\s)[\d.]+(?=[;\s])|`", message)
    ]
    assert len(messages) > 5
    assert not [piece for piece in pieces if len(piece) > 12 and piece not in code]


def test_the_order_of_columns_is_that_of_the_code():
    rows = re.findall(r"^\| ([\d, ]+) \| (.+?) \|", (DOCS / "start" / "own-data.md").read_text("utf-8"), re.M)
    names = [name for _, cell in rows for name in re.findall(r"`(\w+)`", cell)]
    assert names == [*FEATURES, "pdg"]
    assert [int(n) for numbers, _ in rows for n in numbers.split(",")] == list(range(10))


def test_the_readme_is_short_and_its_table_is_that_of_the_results():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.encode()) <= 7000
    results = (DOCS / "results" / "peers.md").read_text("utf-8")
    rows = [line for line in text.split("| ten minutes |")[1].splitlines() if "|" in line][2:]
    assert len(rows) > 5
    for row in rows:
        name, *cells = [cell.strip(" *") for cell in row.strip("|").split("|")]
        numbers = "".join(rf"\| \**{re.escape(cell)} [^|]*" for cell in cells)
        of = "" if "floor" in name else "10 "
        first = name.removeprefix("floor: ").split(",")[0]
        assert re.search(rf"^\| {of}\| {re.escape(first)}[^|]*{numbers}\|$", results, re.M), row


@pytest.mark.parametrize("page", named(sorted((DOCS / "results").glob("[!i]*.md"))))
def test_results_say_where_they_come_from(page):
    text = page.read_text("utf-8")
    assert "| command | `" in text
    assert re.search(r"^\| commit \| [0-9a-f]{7,}", text, re.M)
    assert "| data | " in text


def test_drawings_are_those_of_the_script(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    drawings = importlib.import_module("make_drawings")
    drawings.main(tmp_path)
    for file in tmp_path.glob("*.svg"):
        assert file.read_text("utf-8") == (DOCS / "_static" / file.name).read_text("utf-8")
    rooms = {path.parent.name for path in (ROOT / "calosim").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"\w+", (tmp_path / "house.svg").read_text("utf-8")))


def test_the_reference_is_read_from_the_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    generate = importlib.import_module("generate")
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "gone.rst").touch()
    generate.write(tmp_path)
    helps, settings = ((tmp_path / f"_{name}.md").read_text("utf-8") for name in ("commands", "settings"))
    assert all(f"## {subcommand}\n" in helps for subcommand in SUBCOMMANDS)
    assert {"--run", "--requantization"} <= set(helps.split())
    assert str(ROOT) not in helps
    assert all(f"### {file.relative_to(ROOT).as_posix()}\n" in settings for file in (ROOT / "conf").rglob("*.yaml"))
    assert "WS" in (tmp_path / "_metrics.md").read_text("utf-8")
    assert all(detector.title in (tmp_path / "_detectors.md").read_text("utf-8") for detector in DETECTORS.values())
    api = {file.name: file.read_text("utf-8") for file in (tmp_path / "api").iterdir()}
    assert "gone.rst" not in api
    told = set(re.findall(r"automodule:: (\S+)", "".join(api.values())))
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / "calosim").rglob("*.py")}
    assert {name for name in modules if not re.search(r"__|\.cli\b", name)} <= told
    assert all(name in api["calosim.rst"] for name in calosim.__all__ if not name.startswith("_"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    build = pytest.importorskip("sphinx.cmd.build")
    words = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    assert build.main([*words, str(DOCS), str(tmp_path / "html")]) == 0


@pytest.mark.parametrize("page", named(LESSONS, slow=("judged", "student", "rare", "README")))
def test_lessons_run_from_top_to_bottom(page, reader, run_folders, root_file, capfd, monkeypatch):
    """On small data, by the real command; what `make demo` leaves is there."""
    (reader / "demo").mkdir()
    (reader / "demo" / "zn.root").symlink_to(root_file)
    (reader / "data").mkdir()
    for name in ("zn.root", "study.root"):
        (reader / "data" / name).symlink_to(root_file)
    shutil.copytree(run_folders["splits"], reader / "demo" / "teacher")
    shutil.copytree(run_folders["photons"], reader / "demo" / "photons")
    shutil.copy(ROOT / "conf" / "demo" / "primaries.csv", reader / "primaries.csv")
    names: dict[str, object] = {}
    if page.name == "README.md":
        showers = calosim.read(root_file)
        import numpy as np

        np.savez("data_nonrandom_particles.npz", np.column_stack([showers.particles, showers.pdg]))
        np.savez("data_nonrandom_responses.npz", showers.images)
    for block in blocks(page):
        if own_file(block) or block.text.startswith("# not run"):
            continue
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        elif block.language == "bash":
            for words in lines_of(block.text):
                if words[0] == "calosim" and words[1] != "submit":
                    run(words[1:], capfd)
    sys.modules.pop("mine", None)


def run(words: list[str], capfd) -> None:
    """Runs a reader's command, made small."""
    subcommand, *rest = words
    rest += shlex.split(SMALL.get(subcommand, ""))
    if subcommand == "simulate" and not Path(rest[rest.index("--primaries") + 1]).exists():
        rest += ["--primaries", "100"]
    if "--ckpt_path" in rest:
        rest = [*rest, "--trainer.max_epochs", "2"]
    if "pixels" in " ".join(rest) and subcommand == "fit":
        rest += ["--model.flow.hidden", "[8,8]", "--model.flow.transforms", "1"] if "conf/teacher.yaml" in rest else []
    if "--quiet" in rest and subcommand in ("export", "ensemble"):
        rest.remove("--quiet")
    assert main([subcommand, *rest]) == 0, (
        f"calosim {shlex.join([subcommand, *rest])}\n{capfd.readouterr().err[-2000:]}"
    )
