"""
The composition root: builds the daemon from its configuration, runs and stops it.

Nothing outside of this room constructs a store, a backend or a server.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING

from backends.nfs.backend import NfsBackend
from backends.rsync.backend import RsyncBackend
from backends.rsync.resizing import fit
from backends.system import files
from backends.system.clock import Deadline
from plugin.api.admin.cluster import ClusterView
from plugin.api.admin.shares import ShareCalls
from plugin.api.metrics import Metrics
from plugin.daemon.backends import build_resolver
from plugin.daemon.cluster_node import ClusterNode, record_of, swarm_labels
from plugin.daemon.engine_side import engine_watch
from plugin.daemon.foundation import lay_foundation
from plugin.daemon.left_mounted import left_mounted
from plugin.daemon.node import Node, lock_state
from plugin.daemon.notify import notify
from plugin.daemon.servers import Answering, Servers
from plugin.daemon.use_cases import Given, Owning, Times, build_use_cases
from plugin.errors import ConfigError
from plugin.events.log import Events
from plugin.joining.joined import refuse_joined
from plugin.limits import LONG_DEADLINE_S, OPEN_FILES
from plugin.logs import fields
from plugin.ownership.acquisition import Acquisition
from plugin.ownership.bytes_port import Alone
from plugin.ownership.copy_states import CopyStates, locate_with
from plugin.ownership.release import Release
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import Votes
from plugin.ownership.wishes import Wishes
from plugin.peers.keys import NodeKeys
from plugin.replication.journals import Journals
from plugin.replication.last_commits import LastCommits
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.members import VolumeMembers
from plugin.volumes.propagation import Propagation
from plugin.volumes.share_move import ShareMove
from plugin.volumes.shares import ShareRecords
from plugin.volumes.use_cases import UseCases

if TYPE_CHECKING:
    from plugin.config import Config

log = logging.getLogger(__name__)


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
        # Signals are caught before sockets are bound, so that we always clean up.
        self._stop_requested = _catch_stop_signals()
        _prepare_directories(config)
        self._lock = lock_state(config.state_dir)
        self._node = Node(config.state_dir)
        refuse_joined(self._node, config)
        self._foundation = lay_foundation(config, self._node)
        self._events = Events(config.state_dir)
        self._rsync = RsyncBackend(config.pool, pool_id=self._node.fact("pool_id"))
        if self._node.fact("pool_id") is None:
            self._node.set_fact("pool_id", self._rsync.pool.initialise())
        self._catalogue = Catalogue(self._foundation.store)
        self._shares = ShareRecords(self._foundation.store, self._catalogue)
        self._nfs = NfsBackend(
            config.state_dir,
            node=f"{os.uname().nodename}.{self._node.id}",
            known=self._shares,
        )
        self._copy_states = CopyStates(locate_with(self._rsync))
        self._journals = Journals(self._rsync, self._copy_states)
        self._resolver = build_resolver(config, self._rsync, self._nfs, self._sources())
        self._registry = self._resolver.registry
        self._ownership = self._build_ownership()
        keys = self._foundation.keys
        self._cluster = self._build_cluster(keys) if keys else None
        self._labels = swarm_labels(
            config, self._foundation.store, self._ownership, self._catalogue
        )
        self._volumes = self._build_use_cases()
        self._engine = engine_watch(config, self._volumes.mounting, self._events)
        self._servers = Servers(config, self._answering())

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then stop in order."""
        try:
            # This comes before calls: a node that the cluster refuses answers nobody.
            self._foundation.membership.start()
            self._foundation.note_cluster(self._node)
            if self._cluster is not None:
                # What runs already comes first, then what calls need.
                self._cluster.protect(
                    partial(
                        left_mounted,
                        self._config.mount_dir,
                        self._catalogue,
                        self._ownership,
                    )
                )
            self._servers.start()
            if self._cluster is not None:
                self._cluster.start(self._volumes.scheduled.grants())
            if self._labels is not None:
                self._labels.start()
        except BaseException:
            self._servers.remove_sockets()
            raise
        self._volumes.reconciler.start()
        self._engine.start()
        log.info("serving", extra=fields(plugin_socket=str(self._config.plugin_socket)))
        notify("READY=1\nSTATUS=serving")
        self._stop_requested.recv(1)
        self._stop()

    def _sources(self) -> LastCommits:
        foundation, catalogue = self._foundation, self._catalogue
        return LastCommits(
            *(self._journals, foundation.heads, foundation.nodes),
            foundation.membership,
            record_of=partial(record_of, catalogue),
            knows=lambda volume_id: volume_id in catalogue.names(),
        )

    def _build_ownership(self) -> OwnershipView:
        foundation = self._foundation
        return OwnershipView(
            heads=foundation.heads,
            copy_states=self._copy_states,
            nodes=foundation.nodes,
            membership=foundation.membership,
            registry=self._registry,
            events=self._events,
            mount_dir=self._config.mount_dir,
        )

    def _build_cluster(self, keys: NodeKeys) -> ClusterNode:
        return ClusterNode(
            self._config,
            keys,
            self._ownership,
            self._rsync,
            self._journals,
            self._catalogue,
            Wishes(self._foundation.store, self._foundation.membership),
        )

    def _build_use_cases(self) -> UseCases:
        config, cluster, ownership = self._config, self._cluster, self._ownership
        peers = cluster.peers if cluster else None
        replication = cluster.replication if cluster else None
        owning = Owning(
            ownership,
            Acquisition(
                ownership,
                Votes(peers, node_id=ownership.node_id),
                replication or Alone(),
                mount_wait_s=config.cluster.mount_wait_s,
            ),
            Release(ownership, replication or Alone()),
            keeper=cluster.keeper if cluster else None,
            replication=replication,
            asking=cluster.asking if cluster else None,
        )
        return build_use_cases(
            Given(
                catalogue=self._catalogue,
                resolver=self._resolver,
                references=self._node.references,
                owning=owning,
                propagation=Propagation(config.mount_dir, self._node),
                quarantine=self._rsync.quarantine,
                events=self._events,
                mount_dir=config.mount_dir,
                times=Times(
                    config.mount_deadline_s,
                    config.disuse_grace_s,
                    config.tuning.reconcile_interval_s,
                    config.boot_wait_s,
                ),
                fit=partial(fit, self._rsync.pool),
                unread=self._foundation.unread,
            )
        )

    def _answering(self) -> Answering:
        """Return the parts that answer calls."""
        return Answering(
            *(self._volumes, self._metrics(), self._cluster_view(), self._registry),
            *(self._share_calls(), self._engine.hidden),
        )

    def _share_calls(self) -> ShareCalls:
        volumes = self._volumes
        move = ShareMove(
            *(self._nfs, self._shares, self._catalogue),
            *(volumes.unmounting, volumes.operations),
        )
        return ShareCalls(self._nfs.accept, move.move)

    def _metrics(self) -> Metrics:
        return Metrics(
            self._volumes.views,
            self._registry,
            self._node.references,
            self._ownership.quarantine_records,
            self._cluster.replication if self._cluster else None,
            hidden=self._engine.hidden,
        )

    def _cluster_view(self) -> ClusterView:
        foundation, cluster = self._foundation, self._cluster
        return ClusterView(
            nodes=foundation.nodes,
            membership=foundation.membership,
            settings=foundation.settings,
            mirror=foundation.mirror,
            faults=cluster.faults if cluster else list,
            replication=cluster.replication if cluster else None,
            members=cluster.members
            if cluster
            else VolumeMembers(self._catalogue, self._ownership),
        )

    def _stop(self) -> None:
        """Answer nobody new, let calls under way end, then close everything."""
        log.info("stopping")
        notify("STOPPING=1\nSTATUS=waiting for calls under way")
        self._servers.stop_accepting()
        self._volumes.views.patience.stop()
        self._volumes.mounting.patience.stop()
        self._volumes.reconciler.stop()
        self._engine.stop()
        if self._labels is not None:
            self._labels.stop()
        deadline = Deadline(LONG_DEADLINE_S)
        if not self._servers.drain(deadline):
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
        for directory in (config.state_dir, config.mount_dir):
            files.keep_private(directory)
            if fault := files.way_fault(directory):
                log.warning("%s, and so can take the place of %s", fault, directory)
    except OSError as error:
        raise ConfigError(
            [f"cannot use {error.filename}: {error.strerror}"], source="[daemon]"
        ) from error
