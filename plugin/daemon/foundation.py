"""What the daemon stands on: the store of its records, its place among the nodes."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, replace
from functools import partial

from backends.registry import keeps_copies
from backends.system import clock, files
from plugin.config import Config
from plugin.daemon.node import Node
from plugin.errors import StoreError
from plugin.joining.joined import joined, note_joined
from plugin.membership.addresses import Addresses
from plugin.membership.directory import NodeDirectory
from plugin.membership.loading import refuse_loading
from plugin.membership.membership import Membership
from plugin.membership.nodes import Identity, machine_id, own_name
from plugin.membership.quarantine_records import QuarantineRecords
from plugin.membership.registration import Sources
from plugin.membership.settings import etcd_settings
from plugin.ownership.heads import Heads
from plugin.peers.keys import NodeKeys, ensure_keys
from plugin.store.base import Store
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from plugin.store.sqlite import SqliteStore
from plugin.volumes.catalogue import Catalogue

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Foundation:
    """The store, and this node's place in it."""

    store: Store
    mirror: MirrorStore | None
    settings: EtcdSettings | None
    nodes: NodeDirectory
    membership: Membership
    heads: Heads
    keys: NodeKeys | None
    etcd: EtcdStore | None = None

    def unread(self) -> str:
        """Return why the records may lack volumes since the start, "" if none do."""
        return self.mirror.unread() if self.mirror is not None else ""

    def note_cluster(self, node: Node) -> None:
        """
        Let *node* remember durably that its records are in a cluster.

        Without that, a node that has lost its [cluster] would start alone, with other
        records. It is done as soon as etcd tells which cluster it is.
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
        return _founded(config, node, store)
    settings = etcd_settings(config.cluster)
    keys = ensure_keys(config.state_dir / "peer")
    etcd = EtcdStore(settings)
    mirror = MirrorStore(etcd, path=config.state_dir / "mirror.db")
    founded = _founded(config, node, mirror, mirror=mirror, keys=keys)
    return replace(founded, settings=settings, etcd=etcd)


def _founded(
    config: Config,
    node: Node,
    store: Store,
    *,
    mirror: MirrorStore | None = None,
    keys: NodeKeys | None = None,
) -> Foundation:
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
    heads = Heads(store, QuarantineRecords(store))
    nodes = NodeDirectory(
        store,
        data_only_on=partial(_data_only_on, Catalogue(store), heads),
        always_alive="" if mirror else own.id,
    )
    membership = Membership(
        store,
        own,
        facts=node,
        leases=mirror,
        ttl_s=config.cluster.lease_ttl_s,
        sources=Sources(
            capacity=lambda: files.free_bytes(config.pool),
            addresses=addresses.find if keys else lambda _peers: (),
        ),
        nodes=nodes,
    )
    return Foundation(
        store=store,
        mirror=mirror,
        settings=None,
        nodes=nodes,
        membership=membership,
        heads=heads,
        keys=keys,
    )


def _data_only_on(
    catalogue: Catalogue, heads: Heads, node_id: str
) -> dict[str, list[str]]:
    """Return `Heads.held_only_by` with names; of a removed volume it is the id."""
    names, found = catalogue.names(), heads.held_only_by(node_id)
    # What was imported or cloned, and never mounted, has no head.
    unmounted = {each for each in names if heads.head(each) is None}
    filled = [
        each.id
        for each in catalogue.of_ids(unmounted)
        if (each.filled, each.phase, each.node) == (True, "ready", node_id)
        and keeps_copies(each.backend)
    ]
    if filled:
        found["all of"] = list(dict.fromkeys([*found.get("all of", []), *filled]))
    return {
        part: sorted(names.get(each, each) for each in ids)
        for part, ids in found.items()
    }
