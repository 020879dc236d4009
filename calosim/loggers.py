"""Weights & Biases without an account: offline where there is no key."""

from __future__ import annotations

import os

__all__ = ["wandb_offline_without_key"]


def wandb_offline_without_key() -> None:
    """Sets wandb's mode to offline, unless an API key is known or the mode was chosen."""
    from netrc import NetrcParseError, netrc

    try:
        known = bool(netrc().authenticators("api.wandb.ai"))
    except (OSError, NetrcParseError):
        known = False
    if not known and not os.environ.get("WANDB_API_KEY"):
        os.environ.setdefault("WANDB_MODE", "offline")
