"""
The composition root: builds the daemon from its configuration, runs and stops it.

Nothing else constructs a store, a backend or a server.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.nfs.backend import NfsBackend
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from backends.system.clock import Deadline
from backends.system.mounts import mount_table
from plugin.api.admin.cluster import ClusterView
from plugin.api.admin.http import create_app as create_control_app
from plugin.api.admin.http import create_metrics_app
from plugin.api.docker.http import create_app as create_plugin_app
from plugin.api.metrics import Metrics
from plugin.daemon.cluster_node import (
    ClusterNode,
    lay_foundation,
    own_volumes,
    shared_ssh,
    swarm_labels,
)
from plugin.daemon.node import Node, lock_state
from plugin.daemon.notify import notify
from plugin.daemon.server import Server
from plugin.daemon.sockets import bind_socket, inherited_socket, remove_socket
from plugin.errors import ConfigError, StoreError
from plugin.events.log import Events
from plugin.joining.joined import refuse_joined
from plugin.limits import LONG_DEADLINE_S, OPEN_FILES, SERVER_THREADS
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.ownership import Ownership
from plugin.peers.channel import Peers
from plugin.swarm.labels import SwarmLabels
from plugin.volumes.apart import QuarantineService
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.discovery import Discovery
from plugin.volumes.history import VolumeHistory
from plugin.volumes.members import ReplicaService
from plugin.volumes.operations import Operations
from plugin.volumes.options import OptionResolver
from plugin.volumes.propagation import Propagation
from plugin.volumes.reconciler import Reconciler
from plugin.volumes.service import VolumeService

if TYPE_CHECKING:
    from plugin.config import Config

log = logging.getLogger(__name__)
_CONTROL_THREADS: Final = 8
_METRICS_THREADS: Final = 2


def profile_faults(config: Config) -> list[str]:
    """Return what is wrong with the profiles of *config*; nothing is touched."""
    registry = Registry(
        [
            RsyncBackend(config.pool, pool_id=None),
            NfsBackend(config.state_dir, node=""),
        ]
    )
    return OptionResolver(registry, config.profiles).faults()


class Daemon:
    """One running daemon."""

    def __init__(self, config: Config) -> None:
        """
        Open everything; nobody is answered yet.

        Raises:
            ConfigError: a profile, a directory or a socket is not usable.
            StoreError: the records cannot be used.
            BackendError: the pool cannot be made.

        """
        self._config = config
        # Before anything is bound: whatever ends us from here on, we clean up.
        self._stop_requested = _catch_stop_signals()
        _prepare_directories(config)
        self._lock = lock_state(config.state_dir)
        self._node = Node(config.state_dir)
        refuse_joined(self._node, config)
        self._own_sockets: list[Path] = []
        self._foundation = lay_foundation(config, self._node)
        self._cluster: ClusterNode | None = None
        self._peers: Peers | None = None
        self._events = Events(config.state_dir)
        self._labels: SwarmLabels | None = None
        service = self._build_service()
        self._service = service
        self._quarantine = QuarantineService(service, self._rsync.quarantine)
        self._reconciler = Reconciler(
            service,
            interval_s=config.tuning.reconcile_interval_s,
            also=[self._quarantine.mend],
        )
        try:
            self._servers = self._build_servers(service)
        except BaseException:
            self._remove_sockets()
            raise

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then stop in order."""
        try:
            # Before calls: a node that the cluster cannot have answers nobody.
            self._foundation.membership.start()
            self._foundation.note_cluster(self._node)
            for server in self._servers:
                server.start()
            if self._cluster is not None:
                self._cluster.start(self._left_mounted())
            if self._labels is not None:
                self._labels.start()
        except BaseException:
            self._remove_sockets()
            raise
        self._reconciler.start()
        log.info("serving", extra=fields(plugin_socket=str(self._config.plugin_socket)))
        notify("READY=1\nSTATUS=serving")
        self._stop_requested.recv(1)
        self._stop()

    def _build_service(self) -> VolumeService:
        """Return the use cases on their backends, store and references."""
        config = self._config
        rsync = RsyncBackend(config.pool, pool_id=self._node.fact("pool_id"))
        self._rsync = rsync
        if self._node.fact("pool_id") is None:
            self._node.set_fact("pool_id", rsync.pool.initialise())
        nfs = NfsBackend(
            config.state_dir, node=f"{os.uname().nodename}.{self._node.id}"
        )
        registry = self._registry = Registry([rsync, nfs])
        resolver = OptionResolver(registry, config.profiles)
        if faults := resolver.faults():
            raise ConfigError(faults, source="[profiles]")
        catalogue = Catalogue(self._foundation.store)
        operations = Operations()
        ownership = self._build_ownership(registry, rsync, catalogue)
        for options in resolver.profiles_of(nfs.kind):
            nfs.watch(options)
        return VolumeService(
            catalogue=catalogue,
            registry=registry,
            resolver=resolver,
            references=self._node.references,
            operations=operations,
            discovery=Discovery(
                catalogue=catalogue,
                registry=registry,
                references=self._node.references,
                locks=operations.locks,
            ),
            ownership=ownership,
            keeper=self._cluster.keeper if self._cluster else None,
            propagation=Propagation(config.mount_dir, self._node),
            mount_dir=config.mount_dir,
            mount_deadline_s=config.mount_deadline_s,
            disuse_grace_s=config.disuse_grace_s,
        )

    def _build_ownership(
        self, registry: Registry, rsync: RsyncBackend, catalogue: Catalogue
    ) -> Ownership:
        """Return who owns volumes; in a cluster, build what talks to its nodes."""
        foundation = self._foundation
        if foundation.keys is None:
            return own_volumes(
                self._config, foundation, registry, rsync, None, self._events
            )
        peers = self._peers = Peers(shared_ssh(self._config, foundation.keys))
        ownership = own_volumes(
            self._config, foundation, registry, rsync, peers, self._events
        )
        self._cluster = ClusterNode(
            self._config,
            foundation.keys,
            peers,
            ownership,
            rsync,
            catalogue,
            self._events,
        )
        self._labels = swarm_labels(
            self._config, foundation.store, ownership, catalogue
        )
        return ownership

    def _left_mounted(self) -> dict[str, tuple[VolumeRecord, Path]]:
        """Return the exclusive volumes that an earlier process has left mounted."""
        points = {entry.mount_point for entry in mount_table()}
        try:
            records = self._service.catalogue.all()
        except StoreError:
            return {}  # nothing was ever known of the cluster
        return {
            each.id: (each, self._service.target(each))
            for each in records
            if str(self._service.target(each)) in points
            and self._service.ownership.exclusive(each)
        }

    def _build_servers(self, service: VolumeService) -> list[Server]:
        """Return the servers; what can fail comes before the engine can find us."""
        config = self._config
        replication = self._cluster.replication if self._cluster else None
        metrics = Metrics(service, replication)
        servers = []
        if config.metrics_address:
            servers.append(
                Server(
                    create_metrics_app(metrics),
                    _loopback_socket(config.metrics_address),
                    name="metrics",
                    threads=_METRICS_THREADS,
                )
            )
        servers.append(
            Server(
                create_control_app(
                    service,
                    self._reconciler,
                    metrics,
                    self._cluster_view(),
                    self._quarantine,
                    VolumeHistory(service, self._events, self._peers),
                ),
                self._bind(config.control_socket),
                name="control",
                threads=_CONTROL_THREADS,
            )
        )
        servers.append(
            Server(
                create_plugin_app(service, metrics),
                inherited_socket(os.environ) or self._bind(config.plugin_socket),
                name="plugin",
                threads=SERVER_THREADS,
            )
        )
        return servers

    def _cluster_view(self) -> ClusterView:
        foundation = self._foundation
        return ClusterView(
            membership=foundation.membership,
            settings=foundation.settings,
            mirror=foundation.mirror,
            faults=self._cluster.faults if self._cluster else list,
            replication=self._cluster.replication if self._cluster else None,
            replicas=self._cluster.replicas
            if self._cluster
            else ReplicaService(self._service.catalogue, self._service.ownership, None),
        )

    def _bind(self, path: Path) -> socket.socket:
        """Return a socket of our own, which we also remove at the end."""
        listener = bind_socket(path)
        self._own_sockets.append(path)
        return listener

    def _remove_sockets(self) -> None:
        for path in self._own_sockets:
            remove_socket(path)

    def _stop(self) -> None:
        """Answer nobody new, let calls under way end, then close everything."""
        log.info("stopping")
        notify("STOPPING=1\nSTATUS=waiting for calls under way")
        for server in self._servers:
            server.stop_accepting()
        self._remove_sockets()
        self._reconciler.stop()
        if self._labels is not None:
            self._labels.stop()
        deadline = Deadline(LONG_DEADLINE_S)
        for server in self._servers:
            if not server.drain(deadline):
                log.warning("stopped with calls under way; the next start repairs")
        for backend in self._registry.all().values():
            backend.close()
        if self._cluster is not None:
            self._cluster.stop()
        self._foundation.membership.stop()
        self._foundation.store.close()
        self._events.close()
        self._node.close()
        log.info("stopped")


def _catch_stop_signals() -> socket.socket:
    """
    Return a socket that becomes readable at SIGTERM or SIGINT.

    A main thread that waits for a lock would sleep through a signal that the kernel
    hands to another thread; the wake-up descriptor is written to whichever gets it.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reader


def _prepare_directories(config: Config) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))
    try:
        config.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        config.mount_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            [f"cannot make {error.filename}: {error.strerror}"], source="[daemon]"
        ) from error


def _loopback_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), int(port)), family=family)
    except OSError as error:
        raise ConfigError(
            [f"metrics_address: cannot listen at {address}: {error.strerror}"],
            source="[daemon]",
        ) from error
