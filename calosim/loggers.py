"""Loggers beside the CSV files: Weights & Biases without an account or a network, MLflow without a server."""

from __future__ import annotations

import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

__all__ = ["MLflow", "wandb_offline_where_needed"]

#: Modes of wandb in which it asks no server.
ALONE = ("offline", "dryrun", "disabled")
#: Seconds in which a server must answer; wandb itself would wait for minutes and then end the training.
PATIENCE = 5.0


def wandb_offline_where_needed() -> None:
    """Sets wandb's mode to offline, unless an API key is known or the mode was chosen; and where its server does not answer."""
    from netrc import NetrcParseError, netrc

    try:
        known = bool(netrc().authenticators("api.wandb.ai"))
    except (OSError, NetrcParseError):
        known = False
    if not known and not os.environ.get("WANDB_API_KEY"):
        os.environ.setdefault("WANDB_MODE", "offline")
    if os.environ.get("WANDB_MODE") in ALONE:
        return
    server = _server()
    if not _answers(server):
        os.environ["WANDB_MODE"] = "offline"
        print(
            f"calosim: {server} does not answer; Weights & Biases logs offline, `wandb sync` sends it", file=sys.stderr
        )


def _server() -> str:
    """Where wandb logs to, by its settings, which it must read again: it keeps the mode with them."""
    import wandb

    server = str(wandb.setup().settings.base_url)
    wandb.teardown()
    return server


def _answers(server: str) -> bool:
    """Whether a server says anything at all, by the proxies that the environment names."""
    heard: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(server, timeout=PATIENCE):
                heard.append(True)
        except urllib.error.HTTPError:
            heard.append(True)
        except (OSError, ValueError):
            heard.append(False)

    # Looking up its name knows no time limit of ours.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return any(heard)


class MLflow(MLFlowLogger):
    """Lightning's logger for MLflow, without telemetry, for files too, and for trainings that go on.

    Files, since databases need more packages and lock out other trainings on a cluster. MLflow keeps them up for who asks for
    them by an environment variable.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        super().__init__(*args, **kwargs)
        self._goes_on = self._run_id is not None

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Writes the settings of a run's first session: MLflow refuses others for what it has, and run.json tells of changes."""
        if not self._goes_on:
            super().log_hyperparams(dict(params))
