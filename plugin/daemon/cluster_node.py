"""
The cluster's half of the composition root: what a node needs to be one of several.

A node that is alone has the same parts where they mean something, on its embedded
store: it owns its volumes by the same rules.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from backends.options import seconds
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from backends.system import clock, files
from plugin.config import Config
from plugin.daemon.node import Node
from plugin.daemon.sockets import bind_socket, remove_socket
from plugin.errors import StoreError
from plugin.events.log import Events
from plugin.fencing.client import Guard
from plugin.joining.joined import joined, note_joined
from plugin.membership.addresses import Addresses, AddressWatcher
from plugin.membership.lease import LEASE_MARGIN_S
from plugin.membership.loading import refuse_loading
from plugin.membership.membership import Membership
from plugin.membership.nodes import Identity, machine_id, own_name
from plugin.membership.registration import Sources
from plugin.membership.roster import Roster, hello
from plugin.membership.settings import etcd_settings
from plugin.model import VolumeRecord
from plugin.ownership.failsafe import Failsafe, Holds
from plugin.ownership.heads import Heads
from plugin.ownership.keeper import Keeper
from plugin.ownership.ownership import Ownership
from plugin.ownership.replica_files import Replicas, locate_with
from plugin.ownership.votes import Votes, Witness
from plugin.peers.authorization import Authorization
from plugin.peers.channel import Peers
from plugin.peers.keys import NodeKeys, ensure_keys
from plugin.peers.server import PeerServer
from plugin.peers.sharing import SharedSsh
from plugin.peers.sshd import PeerSshd
from plugin.replication.node import ReplicationNode
from plugin.replication.placement import Placement
from plugin.store.base import Store
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from plugin.store.sqlite import SqliteStore
from plugin.swarm.labels import ENGINE_CALL_S, SwarmLabels
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.members import ReplicaService

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Foundation:
    """The store, and this node's place in it."""

    store: Store
    mirror: MirrorStore | None
    settings: EtcdSettings | None
    membership: Membership
    heads: Heads
    keys: NodeKeys | None
    etcd: EtcdStore | None = None

    def note_cluster(self, node: Node) -> None:
        """
        Let *node* remember durably that its records are in a cluster.

        Without that, a node that has lost its [cluster] would start alone, and be
        somebody else. It is done as soon as etcd tells which cluster it is.
        """
        if self.etcd is None or joined(node) is not None:
            return
        try:
            note_joined(node, self.etcd.identity(), finished=True)
        except StoreError as error:
            log.info("which cluster this is will be noted at the next start: %s", error)


def lay_foundation(config: Config, node: Node) -> Foundation:
    """
    Return the store that *config* names, and the node as a member; nothing runs yet.

    Raises:
        ConfigError, StoreError: it cannot be used.

    """
    if not config.cluster.etcd:
        store = SqliteStore(config.state_dir / "store.db")
        refuse_loading(store)
        membership = _membership(config, node, store, None)
        return Foundation(store, None, None, membership, Heads(store), None)
    settings = etcd_settings(config.cluster)
    keys = ensure_keys(config.state_dir / "peer")
    etcd = EtcdStore(settings)
    mirror = MirrorStore(etcd, path=config.state_dir / "mirror.db")
    membership = _membership(config, node, mirror, keys)
    return Foundation(mirror, mirror, settings, membership, Heads(mirror), keys, etcd)


def _membership(
    config: Config, node: Node, store: Store, keys: NodeKeys | None
) -> Membership:
    own = Identity(
        id=node.id,
        name=own_name(config.cluster.node_name),
        peer_port=config.cluster.peer_port,
        host_key=keys.public_host_key if keys else "",
        public_key=keys.public_node_key if keys else "",
        machine_id=machine_id(),
        boot_id=clock.boot_id(),
        session=str(uuid.uuid4()),
    )
    addresses = Addresses(config.cluster.etcd, fixed=config.cluster.peer_address)
    return Membership(
        store,
        own,
        facts=node,
        leases=store if isinstance(store, MirrorStore) else None,
        ttl_s=config.cluster.lease_ttl_s,
        sources=Sources(
            capacity=lambda: files.free_bytes(config.pool),
            addresses=addresses.find if keys else lambda _peers: (),
        ),
        data_only_on=partial(_data_only_on, store),
    )


def _data_only_on(store: Store, node_id: str) -> list[str]:
    """Return names of volumes; a removed one, of which bytes are left, has its id."""
    names = Catalogue(store).names()
    return sorted(names.get(each, each) for each in Heads(store).held_only_by(node_id))


def own_volumes(
    config: Config,
    foundation: Foundation,
    registry: Registry,
    rsync: RsyncBackend,
    peers: Peers | None,
    events: Events,
) -> Ownership:
    """Return who owns volumes, as this node takes part in it."""
    ownership = Ownership(
        heads=foundation.heads,
        replicas=Replicas(locate_with(rsync)),
        membership=foundation.membership,
        registry=registry,
        votes=Votes(peers, node_id=foundation.membership.own.id),
        mount_wait_s=config.cluster.mount_wait_s,
    )
    ownership.events = events
    return ownership


def swarm_labels(
    config: Config, store: Store, ownership: Ownership, catalogue: Catalogue
) -> SwarmLabels | None:
    """Return what keeps the labels of the swarm's nodes; None unless it is wanted."""
    if not config.swarm.labels:
        return None
    from plugin.swarm.engine_api import EngineApi  # noqa: PLC0415 - requests is slow

    return SwarmLabels(
        EngineApi(config.swarm.engine_socket, timeout_s=ENGINE_CALL_S),
        store=store,
        heads=ownership.heads,
        directory=ownership.membership.directory,
        own_id=ownership.node_id,
        records=partial(_records, catalogue),
        driver=config.plugin_socket.stem,
    )


class ClusterNode:
    """What runs in a cluster only: peers, their sshd, and the keeper of volumes."""

    def __init__(
        self,
        config: Config,
        keys: NodeKeys,
        peers: Peers,
        ownership: Ownership,
        rsync: RsyncBackend,
        catalogue: Catalogue,
        events: Events,
    ) -> None:
        self._peers = peers
        self.replicas = ReplicaService(catalogue, ownership, peers)
        holds = Holds(config.tuning.hold_s)
        failsafe = _failsafe(config, ownership, peers, holds)
        self.keeper = _keeper(config, ownership, failsafe)
        find = partial(_record, catalogue)
        run_directory = config.control_socket.parent
        self.replication = ReplicationNode(
            ownership,
            rsync,
            peers,
            holds=holds,
            find=find,
            records=partial(_records, catalogue),
            keeper=self.keeper,
            nice=config.replication.nice,
            placement=_placement(config, ownership, find),
            look_interval_s=config.tuning.look_interval_s,
        )
        witness = Witness(
            heads=ownership.heads,
            replicas=ownership.replicas,
            find=find,
            stop_writers=self.keeper.stop_writers,
            require_free=holds.require_free,
            node_id=ownership.node_id,
        )
        self._socket = run_directory / "peer.sock"
        self._server = self._peer_server(witness, failsafe, events)
        self._sshd = _sshd(config, keys)
        self._roster = Roster(
            ownership.membership,
            authorization=Authorization(keys.host_key.parent, peer_socket=self._socket),
            peers=peers,
            server=self._server,
        )
        self._addresses = AddressWatcher(ownership.membership.addresses_changed)

    def start(self, mounted: Mapping[str, tuple[VolumeRecord, Path]]) -> None:
        """
        Begin; *mounted* are the volumes that an earlier process has left mounted.

        Raises:
            FencingError: writers could not be stopped; nothing may be mounted.

        """
        self.replication.recover()
        self._roster.start()
        self._server.start()
        self._sshd.start()
        self._addresses.start()
        self.keeper.start(mounted)
        self.replication.start()

    def stop(self) -> None:
        """End all of it; the guard goes on for what stays mounted."""
        self.replication.stop()
        self.keeper.stop()
        self._addresses.stop()
        self._sshd.stop()
        self._roster.stop()
        self._server.stop()
        self._peers.close()
        remove_socket(self._socket)

    def _peer_server(
        self, witness: Witness, failsafe: Failsafe, events: Events
    ) -> PeerServer:
        return PeerServer(
            bind_socket(self._socket),
            handlers={
                "hello": hello,
                "promise": witness.promise,
                "hold": failsafe.agree,
                "events": events.answer,
                **self.replication.handlers(),
                "replica": self.replicas.asked,
            },
            receiver=self.replication.receiving,
        )

    def faults(self) -> list[str]:
        """Return what keeps this node from working with others."""
        fault = self._sshd.fault()
        return [f"other nodes cannot reach this one: {fault}"] if fault else []


def _failsafe(
    config: Config, ownership: Ownership, peers: Peers, holds: Holds
) -> Failsafe:
    ttl_s = config.cluster.lease_ttl_s
    # Between the last keepalive that should have come and the deadline.
    ask_below_s = (ttl_s - LEASE_MARGIN_S) / 2 if config.cluster.failsafe else 0.0
    return Failsafe(ownership, peers, holds, ask_below_s=ask_below_s)


def _keeper(config: Config, ownership: Ownership, failsafe: Failsafe) -> Keeper:
    return Keeper(
        ownership,
        Guard(config.state_dir / "fencing"),
        failsafe,
        freeze_max_s=config.cluster.freeze_max_s,
    )


def shared_ssh(config: Config, keys: NodeKeys) -> SharedSsh:
    """Return the ssh that reaches other nodes."""
    return SharedSsh(
        keys.host_key.parent,
        sockets=config.control_socket.parent / "ssh",
        bandwidth_limit_bytes=config.replication.bandwidth_limit_bytes,
        nice=config.replication.nice,
    )


def _placement(
    config: Config, ownership: Ownership, find: Callable[[str], VolumeRecord | None]
) -> Placement:
    after = config.cluster.replace_after
    return Placement(
        ownership,
        find=find,
        replace_after_s=None if after is None else seconds(after),
        interval_s=config.tuning.follow_interval_s,
    )


def _sshd(config: Config, keys: NodeKeys) -> PeerSshd:
    return PeerSshd(
        keys.host_key.parent,
        run_directory=config.control_socket.parent,
        port=config.cluster.peer_port,
        # Its mount namespace must not keep alive what the daemon unmounts.
        let_go=[config.mount_dir, config.state_dir / "nfs"],
    )


def _records(catalogue: Catalogue) -> list[VolumeRecord]:
    try:
        return catalogue.all()
    except StoreError:
        return []  # nothing was ever known of the cluster


def _record(catalogue: Catalogue, name: str) -> VolumeRecord | None:
    stored = catalogue.find(name)
    return stored.record if stored else None
