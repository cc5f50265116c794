"""The driver as a process: its servers, from the start to a signal."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plugin.api.csi.controller import ControllerService
from plugin.api.csi.daemon import Daemon
from plugin.api.csi.identity import DRIVER_NAME, Identity
from plugin.api.csi.messages import packages
from plugin.api.csi.node import NodeService
from plugin.api.csi.registration import Registration
from plugin.api.csi.server import CsiServer
from plugin.api.csi.snapshots import SnapshotsService
from plugin.logs import fields

log = logging.getLogger(__name__)
_STOP_GRACE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What the command line says.

    *endpoint* is the scheduler's socket, *registration* the directory in which a
    kubelet looks for plugins, None without one. Volumes are published below *roots*.
    """

    endpoint: Path
    node_id: str
    roots: Sequence[Path]
    registration: Path | None


def run(settings: Settings, daemon: Daemon) -> None:
    """
    Answer until SIGTERM or SIGINT.

    Raises:
        ConfigError: a socket cannot be used.

    """
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    servers = _servers(settings, daemon)
    for each in servers:
        each.start()
    log.info("serving", extra=fields(driver=DRIVER_NAME, endpoint=settings.endpoint))
    ending.wait()
    # A kubelet must not be told of a socket that answers no more.
    for each in reversed(servers):
        each.stop(_STOP_GRACE_S)
    log.info("stopped")


def _servers(settings: Settings, daemon: Daemon) -> list[CsiServer]:
    """Return the servers, the one that a kubelet waits for last."""
    found = packages()
    csi, registration = found["csi.v1"], found["pluginregistration"]
    node = NodeService(csi, daemon, node_id=settings.node_id, roots=settings.roots)
    handlers = {
        "Identity": Identity(csi, daemon).handlers(),
        "Controller": {
            **ControllerService(csi, daemon).handlers(),
            **SnapshotsService(csi, daemon).handlers(),
        },
        "Node": node.handlers(),
    }
    servers = [CsiServer(settings.endpoint, csi, handlers)]
    if settings.registration is not None:
        told = Registration(registration, settings.endpoint).handlers()
        path = settings.registration / f"{DRIVER_NAME}-reg.sock"
        servers.append(CsiServer(path, registration, {"Registration": told}))
    return servers
