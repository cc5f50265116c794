"""The daemon's servers: who is answered, and by which of its parts."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.registry import Registry
from backends.system.clock import Deadline
from plugin.api.admin.cluster import ClusterView
from plugin.api.admin.http import create_app as create_control_app
from plugin.api.admin.http import create_metrics_app
from plugin.api.admin.shares import ShareCalls
from plugin.api.docker.http import create_app as create_plugin_app
from plugin.api.metrics import Metrics
from plugin.daemon.server import Server
from plugin.daemon.sockets import (
    bind_socket,
    inherited_socket,
    loopback_socket,
    remove_socket,
)
from plugin.limits import CONTROL_THREADS, SERVER_THREADS
from plugin.volumes.options import AllowedOptions
from plugin.volumes.use_cases import UseCases

if TYPE_CHECKING:
    from plugin.config import Config

_METRICS_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class Answering:
    """
    The parts that answer.

    *hidden* tells by which of our names Docker means volumes of its own.
    """

    volumes: UseCases
    metrics: Metrics
    cluster: ClusterView
    registry: Registry
    shares: ShareCalls
    hidden: Callable[[], Sequence[str]]


class Servers:
    """The servers and the sockets that were bound for them."""

    def __init__(self, config: Config, answering: Answering) -> None:
        """
        Make the servers; the plugin socket comes last, after all that can fail.

        Raises:
            ConfigError: a socket cannot be used; none is left.

        """
        self._servers: list[Server] = []
        self._own_sockets: list[Path] = []
        try:
            self._add_metrics(config, answering)
            self._add_control(config, answering)
            self._add_plugin(config, answering)
        except BaseException:
            self.remove_sockets()
            raise

    def start(self) -> None:
        """Answer from now on."""
        for server in self._servers:
            server.start()

    def remove_sockets(self) -> None:
        """Remove the socket files that are ours."""
        for path in self._own_sockets:
            remove_socket(path)

    def stop_accepting(self) -> None:
        """Answer nobody new."""
        for server in self._servers:
            server.stop_accepting()
        self.remove_sockets()

    def drain(self, deadline: Deadline) -> bool:
        """Return whether the calls under way have ended before *deadline*."""
        ended = [server.drain(deadline) for server in self._servers]
        return all(ended)

    def _add_metrics(self, config: Config, answering: Answering) -> None:
        if config.metrics_address:
            self._servers.append(
                Server(
                    create_metrics_app(answering.metrics),
                    loopback_socket(config.metrics_address),
                    name="metrics",
                    threads=_METRICS_THREADS,
                )
            )

    def _add_control(self, config: Config, answering: Answering) -> None:
        app = create_control_app(
            *(answering.volumes, answering.metrics, answering.cluster),
            answering.registry,
            shares=answering.shares,
            hidden=answering.hidden,
        )
        listener = self._bound(config.control_socket)
        self._servers.append(
            Server(app, listener, name="control", threads=CONTROL_THREADS)
        )

    def _add_plugin(self, config: Config, answering: Answering) -> None:
        volumes = answering.volumes
        app = create_plugin_app(
            *(volumes.views, volumes.creation, volumes.mounting),
            *(volumes.unmounting, volumes.removal, answering.metrics),
            AllowedOptions(config.allowed_options, answering.registry.all().values()),
        )
        listener = inherited_socket(os.environ) or self._bound(config.plugin_socket)
        self._servers.append(
            Server(app, listener, name="plugin", threads=SERVER_THREADS)
        )

    def _bound(self, path: Path) -> socket.socket:
        """Return a socket of our own, whose file goes at the end."""
        listener = bind_socket(path)
        self._own_sockets.append(path)
        return listener
