"""Words to systemd, if it started us. Source: sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from backends.errors import one_line

log = logging.getLogger(__name__)


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send *state*, such as ``READY=1``; without ``NOTIFY_SOCKET`` do nothing."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"  # the abstract namespace, as systemd spells it
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError as error:
        log.warning("systemd was not told '%s': %s", one_line(state), error)
