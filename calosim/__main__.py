"""The ``calosim`` command: trainings by LightningCLI, tools by jsonargparse, all listed by ``calosim --help``."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
from typing import Any

SUBCOMMANDS: dict[str, str] = {
    "simulate": "make showers with the toy Monte Carlo and write them to a ROOT file",
    "convert": "convert npz pairs, Extract.C text or ROOT files to calosim's ROOT form",
    "fit": "train a model (LightningCLI; -c conf/teacher.yaml, any value can be overridden)",
    "validate": "validation metrics of a checkpoint",
    "test": "test metrics of a checkpoint",
    "predict": "run a checkpoint's predict step over the test split",
    "generate": "primaries in (ROOT or CSV), simulated responses out (ROOT)",
    "merge": "join the shards of one generation to what one run would have written",
    "evaluate": "judge a fast simulation on the test split, with floor and trivial model",
    "ensemble": "join one shower model per particle, and a default, in one folder that simulates",
    "explain": "SHAP values of the photon sum and the shower center, and how sure the photon sum is",
    "report": "one self-contained HTML page from any set of run folders",
    "export": "trained models as files for other programs, ALICE O2 first; and their check",
    "submit": "any of these as a batch job of Slurm: submit fit -c conf/teacher.yaml --slurm.time 4:00:00",
    "compare": "run a plan of trainings and compare them with statistics (conf/study)",
}
#: Errors of lightning and of parsers, and words in those of torch and lightning, that settings cause.
LIGHTNINGS = ("MisconfigurationException", "ArgumentError")
TORCHS = ("loading state_dict", "Early stopping conditioned on metric")


def usage() -> str:
    """The text of ``calosim --help``."""
    width = max(map(len, SUBCOMMANDS))
    lines = ["usage: calosim SUBCOMMAND [options]", "", "Fast simulation of ALICE forward calorimeters.", ""]
    lines += [f"  {name:<{width}}  {text}" for name, text in SUBCOMMANDS.items()]
    lines += [
        "",
        "`calosim SUBCOMMAND --help` explains its options. Set CALOSIM_TRACEBACK=1 to see where an error arose.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; the process's own if not given.

    Returns:
        The exit status: 0 on success, 2 after one line on standard error about what was wrong, 1 after one about a
        training whose numbers were no longer finite, 130 and 143 after one that Ctrl-C or SIGTERM has ended it; a training that
        makes room ends with 75.
    """
    if argv is None:
        _take_any_character()
        _outlive_readers()
        _have_home()
        argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from calosim import __version__

        print(f"calosim {__version__}")
        return 0
    if argv[0] not in SUBCOMMANDS:
        from difflib import get_close_matches

        meant = "".join(f"; did you mean {name}?" for name in get_close_matches(argv[0], SUBCOMMANDS, 1))
        known = meant or f"; expected one of {', '.join(SUBCOMMANDS)}"
        print(f"calosim: error: unknown subcommand {argv[0]!r}{known}", file=sys.stderr)
        return 2
    try:
        os.getcwd()
    except FileNotFoundError:
        print("calosim: error: the working folder is no longer there; expected one that is", file=sys.stderr)
        return 2
    from calosim.processes import ended_in_order, look_here_last

    look_here_last()
    code = 0
    with ended_in_order() as status:
        code = _run(argv)
    return status(code)


def _run(argv: list[str]) -> int:
    """Runs a subcommand; its exit status, after one line about what was wrong."""
    subcommand, *words = argv
    try:
        # Imported only when there is work for them: torch and lightning take seconds.
        from calosim.cli import tools
        from calosim.slurm import drop_stale, listen

        drop_stale()
        if subcommand == "fit":
            listen()
        if subcommand in tools.TRAINING:
            from calosim.cli.train import train

            train(subcommand, words)
        elif subcommand == "submit":
            tools.submit(words)
        else:
            tools.run(subcommand, words)
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
        return 0  # after a help
    except Exception as error:
        if os.environ.get("CALOSIM_TRACEBACK") or not _is_said(error):
            raise
        from calosim.cli.parser import one_line

        print(f"calosim: error: {one_line(_words(error))}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    return 0


def _take_any_character() -> None:
    """Makes names of files and particles readable in any locale."""
    if sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode:
        # Such as LC_ALL=C with PYTHONUTF8=0. It cannot be changed in a running interpreter.
        from calosim.processes import own_command

        os.environ["PYTHONUTF8"] = "1"
        words = own_command(sys.argv[1:])
        os.execv(words[0], words)


class _Outlived(io.FileIO):
    """Where output goes as long as somebody reads it: a command whose reader has left, such as `head`, goes on to its end."""

    def write(self, data: Any, /) -> int:
        """Writes, or drops what nobody reads."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for libraries and processes that write there too
            os.close(nowhere)
            return len(data)


def _outlive_readers() -> None:
    """Puts streams in the place of the standard ones that no reader ends, nor a character that a locale lacks."""
    while (last := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # one that was closed is not the next file that is opened
    os.close(last)
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        encoding, at_once = (old.encoding, old.line_buffering or old.write_through) if old else ("utf-8", False)
        raw = io.BufferedWriter(_Outlived(number, "w", closefd=False))
        # A table is worth more than its ± sign.
        setattr(sys, name, io.TextIOWrapper(raw, encoding, "replace", line_buffering=at_once))


def _have_home() -> None:
    """Gives libraries that ask for the user's home and name something to find where there is neither, as in a container."""
    if os.path.expanduser("~") != "~":
        return
    os.environ["HOME"] = home = tempfile.mkdtemp(prefix="calosim-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.setdefault("USER", str(os.getuid()))


def _words(error: Exception) -> str:
    """What an error says, the system's behind the file that it speaks of."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _is_said(error: Exception) -> bool:
    """Whether an error's own words are meant for who gave the command: others are ours, and need their traceback."""
    # By name: lightning is not imported for this.
    if isinstance(error, (ValueError, OSError, FloatingPointError)) or type(error).__name__ in LIGHTNINGS:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TORCHS)


if __name__ == "__main__":
    sys.exit(main())
