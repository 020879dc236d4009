"""Loggers beside the CSV files: Weights & Biases without an account, MLflow without a server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

__all__ = ["MLflow", "wandb_offline_without_key"]


def wandb_offline_without_key() -> None:
    """Sets wandb's mode to offline, unless an API key is known or the mode was chosen."""
    from netrc import NetrcParseError, netrc

    try:
        known = bool(netrc().authenticators("api.wandb.ai"))
    except (OSError, NetrcParseError):
        known = False
    if not known and not os.environ.get("WANDB_API_KEY"):
        os.environ.setdefault("WANDB_MODE", "offline")


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
