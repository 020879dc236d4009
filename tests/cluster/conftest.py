"""A Slurm of one node, as `tests/cluster/slurm.sh` starts it; where it is not installed, tests of it are skipped."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("slurm.sh")
#: States of jobs that will not change any more.
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


class Slurm:
    """A Slurm that runs in a folder.

    Args:
        folder: The folder.
    """

    script = SCRIPT

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, *words: object) -> str:
        """What one of Slurm's commands prints."""
        return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout.strip()

    def job(self, job: object) -> dict[str, str]:
        """What ``scontrol show job`` knows, such as JobState, ExitCode, Restarts; also of jobs that ended in this hour."""
        return dict(re.findall(r"(\S+?)=(\S*)", self("scontrol", "--oneliner", "show", "job", job)))

    def wait(self, job: object, state: str | None = None, seconds: float = 300) -> dict[str, str]:
        """Waits until a job is in a state, or has ended.

        Raises:
            AssertionError: If that takes too long, or it ended in another state than the one that was waited for.
        """
        end = time.monotonic() + seconds
        while (found := self.job(job))["JobState"] not in (*ENDED, state) and time.monotonic() < end:
            time.sleep(0.2)
        assert found["JobState"] == (state or found["JobState"]), found
        assert found["JobState"] in (*ENDED, state), found
        return found


@pytest.fixture(scope="session")
def _bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not all(map(shutil.which, ("sbatch", "munged"))):
        pytest.skip("no Slurm here: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([SCRIPT, "start", folder], check=True, capture_output=True, timeout=60)
        yield folder
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, timeout=60)


@pytest.fixture
def slurm(_bed: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A Slurm that Slurm's commands find."""
    monkeypatch.setenv("SLURM_CONF", str(_bed / "slurm.conf"))
    return Slurm(_bed)
