"""Weights & Biases without an account or a network: offline where there is no key, or no server to be reached."""

from __future__ import annotations

import os
import sys
import threading
import urllib.error
import urllib.request

__all__ = ["wandb_offline_where_needed"]

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
