"""The little that the CLI asks of the Docker Engine's own API."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from backends.system.clock import pause
from plugin.engine.engine_api import EngineApi
from plugin.engine.failed_starts import FailedStart, failed_starts
from plugin.engine.local_volumes import local_volumes
from plugin.errors import EngineError

_DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
_TIMEOUT_S: Final = 60.0
_PAUSE_TRIES: Final = 5
_PAUSE_WAIT_S: Final = 0.2


class Engine:
    """The engine at ``DOCKER_HOST``, which must be a Unix socket of this machine."""

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        host = os.environ.get("DOCKER_HOST", _DEFAULT_HOST)
        if not host.startswith("unix://"):
            raise EngineError(
                f"DOCKER_HOST is {host}",
                hint="import reads the volume's files: use the engine of this machine",
            )
        self._api = EngineApi(host.removeprefix("unix://"), timeout_s=timeout_s)
        self._call = self._api.call

    def local_volumes(self) -> list[str]:
        """Return the names of the volumes of driver `local`."""
        return local_volumes(self._api)

    def failed_starts(self, driver: str) -> list[FailedStart]:
        """Return the containers that are down for a volume of *driver*."""
        return failed_starts(self._api, driver)

    def info(self) -> dict[str, Any]:
        """Return what the engine tells of itself."""
        found: dict[str, Any] = self._call("GET", "/info")
        return found

    def local_volume_path(self, name: str) -> Path:
        """
        Return where the data of volume *name* of driver `local` lies.

        Raises:
            EngineError: there is none, or it is a mount of something else.

        """
        volume = self._call("GET", f"/volumes/{quote(name, safe='')}")
        if volume.get("Driver") != "local":
            raise EngineError(f"volume '{name}' belongs to driver {volume['Driver']}")
        if volume.get("Options"):
            raise EngineError(
                f"volume '{name}' has mount options, so its bytes lie elsewhere",
                hint=f"mount that storage, and: remora import DIRECTORY --name {name}",
            )
        # Docker's directory is a link in many places.
        return Path(volume["Mountpoint"]).resolve()

    def remove_volume(self, name: str) -> None:
        """Remove volume *name*, or raise EngineError with the engine's reason."""
        self._call("DELETE", f"/volumes/{quote(name, safe='')}")

    @contextmanager
    def paused_users_of(self, volume: str) -> Iterator[None]:
        """
        Pause the running containers that use *volume* until the block is left.

        Raises:
            EngineError: one cannot be paused; those that were are running again.

        """
        filters = quote(json.dumps({"volume": [volume], "status": ["running"]}))
        found = self._call("GET", f"/containers/json?filters={filters}")
        with ExitStack() as stack:
            stack.enter_context(_terminable())
            for container in found:
                self._pause(container["Id"])
                stack.callback(
                    self._call, "POST", f"/containers/{container['Id']}/unpause"
                )
            yield

    def _pause(self, container_id: str) -> None:
        # The freezer of cgroup version 1 fails on a container that forks all the time.
        for left in reversed(range(_PAUSE_TRIES)):
            try:
                self._call("POST", f"/containers/{container_id}/pause")
            except EngineError:
                if not left:
                    raise
                pause(_PAUSE_WAIT_S)
            else:
                return


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM leave the block in order: paused containers must not stay so."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
