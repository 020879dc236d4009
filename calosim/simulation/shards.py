"""Shards: one generation as several jobs, each a range of its rows, and their files as the one that one run would write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calosim.data.checks import existing_file
from calosim.data.reading import checked_pieces
from calosim.data.root import BASKET, Writer, read_made, root_source
from calosim.io import check_not_read
from calosim.runs import difference

__all__ = ["Shard", "join", "merge"]


@dataclass(frozen=True)
class Shard:
    """One of the consecutive ranges that the rows of a generation are cut into.

    Attributes:
        number: Which one, from 1.
        count: How many there are; 1 for a run that is not cut.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str | None) -> Shard:
        """The shard of ``3/16``; the whole if nothing is given.

        Raises:
            ValueError: If it is none of that form.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", "1/1" if text is None else text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise ValueError(f"expected a shard such as 3/16, from 1/16 to 16/16, got {text}")
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def path(self, out: str | Path) -> Path:
        """The file of the shard, beside that of the whole: ``fast.3-of-16.root``."""
        out = Path(out)
        return out if self.count == 1 else out.with_name(f"{out.stem}.{self.number}-of-{self.count}{out.suffix}")

    def rows(self, total: int) -> range:
        """The rows of the shard, of ``total``.

        Raises:
            ValueError: If there are more shards than rows.
        """
        if self.count > total:
            raise ValueError(f"shard {self}: expected no more shards than responses, of which there are {total}")
        return range(total * (self.number - 1) // self.count, total * self.number // self.count)


def join(files: Iterable[Path], out: str | Path, detector: str, made: Mapping[str, Any], progress: tqdm) -> None:
    """Writes the rows of files one behind the other, in constant memory.

    Args:
        files: ROOT files of that detector.
        out: The ROOT file to write.
        detector: The detector's name.
        made: What it says of how it was made.
        progress: Counts rows.

    Raises:
        ValueError: If a file is bad.
    """
    with Writer(out, detector, made) as writer:
        for file in files:
            for showers in checked_pieces(root_source(file, detector), BASKET):
                writer.extend(showers)
                progress.update(len(showers))


def merge(shards: list[str], out: str, quiet: bool = False) -> None:
    """Joins the shards of one generation to what a single run would have written.

    Args:
        shards: The files of all shards, in any order.
        out: The ROOT file to write.
        quiet: Show no progress.

    Raises:
        ValueError: If they do not belong together, one is missing, damaged, or there twice.
    """
    check_not_read(out, shards)
    files, made, total = _in_order(list(map(existing_file, shards)))
    detector = root_source(next(iter(files.values())), None).detector
    with tqdm(total=total, unit="responses", unit_scale=True, disable=True if quiet else None) as progress:
        join(files.values(), out, detector, made, progress)
    print(f"{out}: {total:,} responses of {len(files)} shards")


def _in_order(paths: list[Path]) -> tuple[dict[int, Path], dict[str, Any], int]:
    """Files by the number of their shard, what the whole says of itself, and its rows; see :func:`merge`."""
    if not paths:
        raise ValueError("no shard to merge; expected the files of all of them")
    found: dict[int, Path] = {}
    first: dict[str, Any] = {}
    total = 0
    for path in paths:
        source, made = root_source(path, None), read_made(path)
        shard = Shard()
        with suppress(ValueError, TypeError, KeyError):
            shard = Shard.read(made["shard"])  # type: ignore[index]
        if made is None or shard.count == 1:
            raise ValueError(f"{path}: is no shard; expected what `calosim generate --shard` writes")
        common = {**made, "shard": f"N/{shard.count}"}
        first = first or common
        if common != first:
            raise ValueError(f"{path}: does not belong to {paths[0]} (it has {difference(common, first)})")
        if shard.number in found:
            raise ValueError(f"{path}: is shard {shard}, as {found[shard.number]} is; expected each once")
        if source.rows != len(shard.rows(made["rows"])):
            raise ValueError(
                f"{path}: holds {source.rows} rows; expected {len(shard.rows(made['rows']))} of shard {shard}"
            )
        found[shard.number] = path
        total = made["rows"]
        count = shard.count
    if missing := [str(number) for number in range(1, count + 1) if number not in found]:
        raise ValueError(f"{len(missing)} of {count} shards are missing: {','.join(missing)}; expected all of them")
    return {number: found[number] for number in sorted(found)}, {**first, "shard": str(Shard())}, total
