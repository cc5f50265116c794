"""
The cluster's half of the composition root: what a node needs to be one of several.

A node that is alone has none of it, and owns its volumes by the same rules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NoReturn

from backends.options import seconds
from backends.registry import keeps_copies
from backends.rsync.backend import RsyncBackend
from backends.rsync.journal.fitting import unfit_of
from plugin.config import Config
from plugin.daemon.sockets import bind_socket, remove_socket
from plugin.engine.engine_api import EngineApi
from plugin.errors import PeerRefusedError, StoreError
from plugin.events.log import Events, EventsRequest
from plugin.fencing.client import Guard
from plugin.membership.addresses import AddressWatcher
from plugin.membership.lease import LEASE_MARGIN_S
from plugin.membership.roster import Roster, hello
from plugin.model import VolumeRecord
from plugin.ownership.failsafe import Failsafe, HoldRequest, Holds
from plugin.ownership.granting import Grant, Granting
from plugin.ownership.holders import Holders
from plugin.ownership.keeper import Keeper, LeftMounted
from plugin.ownership.parts import Asking, Parts
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import PromiseRequest, Witness
from plugin.ownership.wishes import Action, Wishes
from plugin.peers.authorization import Authorization
from plugin.peers.channel import Peers
from plugin.peers.control import Handler
from plugin.peers.keys import NodeKeys
from plugin.peers.questions import NoBody, Question, anybody
from plugin.peers.server import PeerServer
from plugin.peers.sharing import SharedSsh
from plugin.peers.sshd import PeerSshd
from plugin.replication.journals import Journals
from plugin.replication.node import TRANSFERS, ReplicationNode
from plugin.replication.placement import Placement
from plugin.store.base import Store
from plugin.swarm.labels import ENGINE_CALL_S, SwarmLabels
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.members import VolumeMembers

log = logging.getLogger(__name__)


def swarm_labels(
    config: Config, store: Store, ownership: OwnershipView, catalogue: Catalogue
) -> SwarmLabels | None:
    """Return what keeps the labels of a swarm's nodes; None if nobody wants them."""
    if not config.swarm.labels:
        return None
    return SwarmLabels(
        EngineApi(config.swarm.engine_socket, timeout_s=ENGINE_CALL_S),
        store=store,
        heads=ownership.heads,
        nodes=ownership.nodes,
        own_id=ownership.node_id,
        records=partial(_with_copies, catalogue),
        driver=config.plugin_socket.stem,
    )


class ClusterNode:
    """What runs in a cluster only: peers, their sshd, and the keeper of volumes."""

    def __init__(
        self,
        config: Config,
        keys: NodeKeys,
        ownership: OwnershipView,
        rsync: RsyncBackend,
        journals: Journals,
        catalogue: Catalogue,
        wishes: Wishes,
    ) -> None:
        peers = self.peers = Peers(_shared_ssh(config, keys))
        by_id, find = partial(_by_id, catalogue), partial(record_of, catalogue)
        parts = Parts(ownership.heads, wishes, by_id=by_id)
        self.asking = asking = Asking(peers, wishes, parts, node_id=ownership.node_id)
        unfit = partial(_unfit, rsync)
        self.members = VolumeMembers(catalogue, ownership, asking, unfit)
        holds = Holds(config.tuning.hold_s)
        failsafe = _failsafe(config, ownership, peers, holds)
        self.keeper = _keeper(config, ownership, failsafe)
        self.replication = ReplicationNode(
            *(ownership, rsync, journals, peers),
            asking=asking,
            holds=holds,
            find=find,
            by_id=by_id,
            records=partial(_records, catalogue),
            of_group=catalogue.of_group,
            keeper=self.keeper,
            nice=config.replication.nice,
            placement=_placement(config, ownership, Holders(ownership, asking), find),
            look_interval_s=config.tuning.look_interval_s,
        )
        witness = _witness(ownership, holds, self.keeper, find)
        self._socket = config.control_socket.parent / "peer.sock"
        self._server = self._peer_server(
            {
                **questions(witness, failsafe, ownership.events, parts),
                **self.replication.questions(parts.require),
            }
        )
        self._granting = self._grants(wishes, ownership)
        self._sshd = _sshd(config, keys)
        self._roster = Roster(
            ownership.node_id,
            ownership.nodes,
            authorization=Authorization(keys.host_key.parent, peer_socket=self._socket),
            peers=peers,
            server=self._server,
        )
        self._addresses = AddressWatcher(ownership.membership.addresses_changed)

    def protect(self, left_mounted: LeftMounted) -> None:
        """
        Keep what an earlier process has left mounted, and know the other nodes.

        It is quick, whatever a crash has left: containers that run must not be frozen,
        and a Mount must not begin without votes, because another volume is repaired.

        Raises:
            FencingError: writers could not be stopped; nothing may be mounted.

        """
        self.keeper.start(left_mounted)
        self._roster.start()

    def start(self, grants: Mapping[Action, Grant]) -> None:
        """Answer other nodes, with *grants* as well; begin to keep members in step."""
        self._server.start()
        self._sshd.start()
        self._addresses.start()
        self.replication.start()
        self._granting.start(grants)

    def stop(self) -> None:
        """End all of it; the guard goes on for what stays mounted."""
        self._granting.stop()
        self.replication.stop()
        self.keeper.stop()
        self._addresses.stop()
        self._sshd.stop()
        self._roster.stop()
        self._server.stop()
        self.peers.close()
        remove_socket(self._socket)

    def _peer_server(self, handlers: Mapping[str, Handler]) -> PeerServer:
        return PeerServer(
            bind_socket(self._socket),
            handlers=handlers,
            receiver=self.replication.receiving,
            transfers=TRANSFERS,
        )

    def _grants(self, wishes: Wishes, ownership: OwnershipView) -> Granting:
        grants: dict[Action, Grant] = {
            "move": self.replication.moving.grant,
            "add": self.members.grant,
            "remove": self.members.grant,
        }
        return Granting(wishes, grants, is_node=ownership.is_member)

    def faults(self) -> list[str]:
        """Return what keeps this node from working with others."""
        fault = self._sshd.fault()
        return [f"other nodes cannot reach this one: {fault}"] if fault else []


def questions(
    witness: Witness,
    failsafe: Failsafe,
    events: Events,
    parts: Parts,
) -> dict[str, Handler]:
    """Return what other nodes may ask besides replication, that have a part in it."""
    return {
        "hello": Question(NoBody, anybody, hello),
        "promise": Question(PromiseRequest, parts.require, witness.promise),
        # Asked when the store is away, by owners that have little time.
        "hold": Question(HoldRequest, parts.require_known, failsafe.agree),
        "events": Question(EventsRequest, parts.require, events.answer),
        # What daemons of earlier versions ask; see ADR 24.
        "move": Question(NoBody, refuse_wish, refuse_wish),
        "replica": Question(NoBody, refuse_wish, refuse_wish),
    }


def refuse_wish(node_id: str, request: object) -> NoReturn:
    """Refuse what an earlier version would have us do, and say what helps."""
    del node_id, request
    raise PeerRefusedError(
        "wishes of other nodes are read from the store, which the asking node's "
        "version does not write them to",
        hint="update the node that asks, or do it on the volume's owner",
    )


def _failsafe(
    config: Config, ownership: OwnershipView, peers: Peers, holds: Holds
) -> Failsafe:
    ttl_s = config.cluster.lease_ttl_s
    # We ask in the second half of the time from a keepalive to the deadline.
    ask_below_s = (ttl_s - LEASE_MARGIN_S) / 2 if config.cluster.failsafe else 0.0
    return Failsafe(ownership, peers, holds, ask_below_s=ask_below_s)


def _witness(
    ownership: OwnershipView,
    holds: Holds,
    keeper: Keeper,
    find: Callable[[str], VolumeRecord | None],
) -> Witness:
    return Witness(
        heads=ownership.heads,
        copy_states=ownership.copy_states,
        find=find,
        stop_writers=keeper.stop_writers,
        require_free=holds.require_free,
        node_id=ownership.node_id,
    )


def _keeper(config: Config, ownership: OwnershipView, failsafe: Failsafe) -> Keeper:
    return Keeper(
        ownership,
        Guard(config.state_dir / "fencing"),
        failsafe,
        freeze_max_s=config.cluster.freeze_max_s,
    )


def _shared_ssh(config: Config, keys: NodeKeys) -> SharedSsh:
    return SharedSsh(
        keys.host_key.parent,
        sockets=config.control_socket.parent / "ssh",
        bandwidth_limit_bytes=config.replication.bandwidth_limit_bytes,
        nice=config.replication.nice,
    )


def _placement(
    config: Config,
    ownership: OwnershipView,
    holders: Holders,
    find: Callable[[str], VolumeRecord | None],
) -> Placement:
    after = config.cluster.replace_after
    return Placement(
        ownership,
        holders,
        find=find,
        replace_after_s=None if after is None else seconds(after),
        interval_s=config.tuning.follow_interval_s,
    )


def _sshd(config: Config, keys: NodeKeys) -> PeerSshd:
    return PeerSshd(
        keys.host_key.parent,
        run_directory=config.control_socket.parent,
        port=config.cluster.peer_port,
        # Volumes that the daemon unmounts must not stay mounted in sshd's namespace.
        let_go=[config.mount_dir, config.state_dir / "nfs"],
    )


def _unfit(rsync: RsyncBackend, record: VolumeRecord) -> str:
    return unfit_of(rsync.copy_directory(record.volume()))


def _by_id(catalogue: Catalogue, volume_id: str) -> VolumeRecord | None:
    return next(iter(_records(catalogue, [volume_id])), None)


def _records(catalogue: Catalogue, ids: Collection[str]) -> list[VolumeRecord]:
    try:
        return catalogue.of_ids(ids)
    except StoreError:
        return []  # nothing was ever known of the cluster


def _with_copies(catalogue: Catalogue) -> list[VolumeRecord]:
    ids = {each.id for each in catalogue.heads() if keeps_copies(each.backend)}
    return catalogue.of_ids(ids)


def record_of(catalogue: Catalogue, name: str) -> VolumeRecord | None:
    """Return the record of volume *name*, None if there is none."""
    stored = catalogue.find(name)
    return stored.record if stored else None
