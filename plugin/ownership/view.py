"""What this node knows of the owners of volumes, itself included."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from backends.base import Backend
from backends.errors import BackendError, InvalidRequestError
from backends.registry import Registry
from backends.replication_options import ReplicationOptions
from backends.system import clock
from plugin.errors import NotOwnerError, PeerSilentError, RecordsError, StoreError
from plugin.events.log import Events, Fact
from plugin.logs import fields
from plugin.membership.directory import NodeDirectory
from plugin.membership.membership import Membership
from plugin.model import VolumeRecord
from plugin.ownership import copy_worth, rules
from plugin.ownership.copy_states import CopyStates
from plugin.ownership.heads import Heads, Lock, put_lock
from plugin.ownership.state import (
    EMPTY,
    FILLED,
    Choice,
    Commit,
    CopyState,
    Head,
    Lineage,
)
from plugin.store.base import Put

log = logging.getLogger(__name__)


def _in_words(head: Head, wanted: int) -> str:
    """Return how many of the *wanted* copies hold the newest commit that is known."""
    if len(head.members) < 2:
        return "unreplicated"
    return f"{len(head.holders)} of {max(wanted, len(head.members))} copies"


def initial_commit(record: VolumeRecord, node_id: str) -> Commit:
    """Return the commit of a copy that was never owned; only its maker's has bytes."""
    made_here = record.node in ("", node_id)
    return FILLED if record.filled and made_here else EMPTY


class OwnershipFacts(msgspec.Struct, frozen=True, kw_only=True):
    """
    Who owns a volume, and which nodes hold its newest commit; nodes by their names.

    A volume whose bytes all nodes share has no ``replication`` and no ``quality``.
    ``moment`` is that which its commit shares with others of its group.
    """

    owner: str
    epoch: int
    ownership: str
    commit: str
    holders: list[str]
    replication: str | UnsetType = UNSET
    quality: str | UnsetType = UNSET
    moment: str | UnsetType = UNSET
    set_apart_on: list[str] | UnsetType = UNSET


class OwnershipView:
    """
    What this node knows of owned volumes; each part that deals with them is given it.

    It only looks: what changes who owns a volume is in `acquisition.py`, `release.py`,
    `removal.py` and `keeper.py`.
    """

    def __init__(
        self,
        *,
        heads: Heads,
        copy_states: CopyStates,
        nodes: NodeDirectory,
        membership: Membership,
        registry: Registry,
        events: Events,
        mount_dir: Path,
    ) -> None:
        self.heads = heads
        self.quarantine_records = heads.quarantine_records
        self.copy_states = copy_states
        self.nodes = nodes
        self.membership = membership
        self.registry = registry
        self.events = events
        self.mount_dir = mount_dir
        self.own = membership.own
        self.node_id = membership.own.id
        self.boot_id = membership.own.boot_id

    def exclusive(self, record: VolumeRecord) -> bool:
        """Return whether one node at a time may have the volume mounted."""
        return self.backend_of(record).exclusive(record.volume())

    def owned_epoch(self, record: VolumeRecord) -> int:
        """
        Return the epoch that this boot owns, if its copy is live in it; else 0.

        Its lock may have gone with a lease.
        """
        head, ours = self.heads.read(record.id).head, (self.node_id, self.boot_id)
        if head is None or (head.owner, head.boot_id, head.phase) != (*ours, "owned"):
            return 0
        copy = self.copy_state(record)
        if copy is not None and copy_worth.gone_back(copy, head):
            return 0
        return head.epoch if copy is None or copy.live_epoch == head.epoch else 0

    def require_possible(self, record: VolumeRecord) -> None:
        """Raise InvalidRequestError for a volume that nobody could keep exclusive."""
        if self.membership.alone and self.is_shared(record) and self.exclusive(record):
            raise InvalidRequestError(
                "option 'exclusive' needs a cluster",
                hint="configure etcd in [cluster], or create the volume without it",
            )

    def is_member(self, node_id: str) -> bool:
        """Return whether the cluster has a node of that id, dead or alive."""
        return self.nodes.has(node_id)

    def is_ours_to_finish(self, record: VolumeRecord) -> bool:
        """Return whether it is for this node to finish what was begun with it."""
        return record.node in ("", self.node_id) or not self.is_member(record.node)

    def choose(
        self,
        record: VolumeRecord,
        head: Head,
        lineage: Lineage,
        votes: Mapping[str, Commit],
    ) -> Choice:
        """
        Return what to begin with; see `rules.choose`.

        If people have removed all its holders from the cluster, they gave the newest
        commit up.
        """
        holders = tuple(filter(self.is_member, head.holders))
        accepted = ReplicationOptions.of(record.options).accept_loss
        return rules.choose(
            msgspec.structs.replace(head, holders=holders),
            lineage,
            votes,
            accept_loss=accepted or not holders,
        )

    def copies(self) -> set[str]:
        """
        Return the ids of volumes of which this node has a copy, in whatever state.

        Raises:
            BackendError: that cannot be known now.

        """
        backends = self.registry.all().values()
        return {each for backend in backends for each in backend.copies()}

    def spare_copies(self) -> set[str]:
        """Return the ids of those copies of which this node may not be a member."""
        if self.membership.alone:
            return set()
        heads = self.heads.naming(self.node_id)
        ours = {key for key, head in heads.items() if self.node_id in head.members}
        return self.copies() - ours

    def has_departed(self, record: VolumeRecord) -> bool:
        """
        Return whether this node has a copy although it is no member.

        A node that acquired the volume but has not begun keeps its copy, also when it
        gave up: its next try goes on with what was fetched.
        """
        head = self.heads.head(record.id)
        if self.membership.alone or head is None or self.is_shared(record):
            return False
        if self.node_id in head.members or head.phase not in ("owned", "idle"):
            return False
        if head.owner == self.node_id and head.committed.epoch != head.epoch:
            return False
        return self.backend_of(record).copy_directory(record.volume()) is not None

    def still_owner(self, record: VolumeRecord, epoch: int) -> bool:
        """
        Return whether this boot's *epoch* goes on, even if its lock is missing.

        No disk is asked, for all deadlines would wait for one that hangs. So of a copy
        that was not read yet, the store alone tells.

        Raises:
            StoreError: no record says whose it is; that the records have gone, without
                a tomb, or are of an earlier epoch, makes nobody else its owner.

        """
        head = self.heads.read(record.id).head
        if head is None and not self.heads.is_removed(record.id):
            raise RecordsError(
                f"no record says who owns '{record.name}'",
                hint="are the cluster's records gone? remora cluster load",
            )
        if head is not None and head.epoch < epoch:
            raise RecordsError(
                f"the records of '{record.name}' are older than what runs here",
                hint="was etcd restored from a backup? load newer records, if any",
            )
        if head is None or (head.owner, head.boot_id) != (self.node_id, self.boot_id):
            return False
        if head.epoch != epoch or head.phase != "owned":
            return False
        return self.copy_states.live_epoch(record.id) in (None, epoch)

    def knows_copy(self, record: VolumeRecord) -> bool:
        """Return whether it is known in which epoch this node's copy is live."""
        known = self.copy_states.live_epoch(record.id) is not None
        return known or self.is_shared(record)

    def holds_lock(self, record: VolumeRecord, epoch: int) -> bool:
        """
        Return whether this node has the lock of *epoch*, on the lease that it has now.

        If so nobody else can have come to own the volume, whatever is known of its
        head. If *epoch* is 0, it is not known, the copy has to be known to be live.
        """
        lock, lease = self.heads.lock(record.id)
        if lock is None or (lock.node, lease) != (self.node_id, self.membership.lease):
            return False
        live = self.copy_states.live_epoch(record.id)
        known = epoch or (lock.epoch if self.is_shared(record) else live)
        return known == lock.epoch and live in (None, lock.epoch)

    def require_owned(self, record: VolumeRecord, epoch: int) -> None:
        """Raise NotOwnerError if this boot's *epoch* is over."""
        if not self.still_owner(record, epoch):
            raise NotOwnerError(
                f"another node has taken '{record.name}' meanwhile",
                hint="retry",
                transient=True,
            )

    def facts(self, record: VolumeRecord) -> OwnershipFacts | None:
        """Return who owns the volume, for people; None where nobody can tell."""
        head = self.heads.head(record.id)
        if self.membership.alone or head is None:
            return None
        shared = self.is_shared(record)
        apart = self.quarantine_records.of(record.id)
        names = {self.name_of(each.node_id) for each in apart}
        wanted = ReplicationOptions.of(record.options).copies
        return OwnershipFacts(
            owner=self.name_of(head.owner) if head.phase != "idle" else "",
            epoch=head.epoch,
            ownership=head.phase,
            commit=str(head.committed),
            holders=[self.name_of(each) for each in head.holders],
            replication=UNSET if shared else _in_words(head, wanted),
            quality=UNSET if shared else head.quality or "unknown",
            moment=head.moment or UNSET,
            set_apart_on=sorted(names) or UNSET,
        )

    def warnings(self, record: VolumeRecord) -> list[str]:
        """Return what the cluster lacks for the copies that were asked for."""
        asked = {"members", "replicas"} & record.options.keys()
        if not asked or self.membership.alone:
            return []
        wanted = ReplicationOptions.of(record.options)
        nodes = {each.record.name for each in self.nodes.all()}
        if strangers := sorted(wanted.members - nodes):
            return [f"option 'members' names what is no node: {', '.join(strangers)}"]
        if wanted.copies > len(nodes):
            count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
            return [
                f"{wanted.copies} copies are asked for, and the cluster has {count}"
            ]
        return []

    def require_valid(self) -> None:
        """
        Raise StoreError unless this node may own volumes at this moment.

        Call it after everything that takes time: the lease may have ended meanwhile.
        """
        if clock.boottime_s() < self.membership.deadline_s():
            return
        fault = self.membership.fault()
        raise StoreError(
            f"this node has no lease in the cluster{f': {fault}' if fault else ''}",
            hint="running containers go on; the next mount works when etcd answers",
        )

    def initial_head(self, record: VolumeRecord) -> Head:
        """Return the head of a volume that nobody has owned yet."""
        if self.is_shared(record):
            return Head()
        maker = record.node or self.node_id
        return Head(
            committed=FILLED if record.filled else EMPTY,
            holders=(maker,) if record.filled else (),
            members=(maker,),
        )

    def backend_of(self, record: VolumeRecord) -> Backend:
        """Return the backend that carries the volume."""
        return self.registry.get(record.backend)

    def has_users(self, record: VolumeRecord) -> bool:
        """Return whether a process of this node may have the volume; none is proven."""
        backend = self.backend_of(record)
        try:
            return bool(backend.users(record.volume(), self.mount_dir / record.id))
        except BackendError:
            return True

    def is_shared(self, record: VolumeRecord) -> bool:
        """Return whether all nodes have the same bytes, so that none has a copy."""
        return self.backend_of(record).traits.reachable_from_every_node

    def copy_state(self, record: VolumeRecord) -> CopyState | None:
        """Return this node's copy state, None without a copy; see `CopyStates.read`."""
        if self.is_shared(record):
            return None  # the pool, which may hang, has no part in it
        return self.copy_states.read(
            record.id, initial=initial_commit(record, self.node_id)
        )

    def is_sealed(self, record: VolumeRecord, commit: Commit) -> bool:
        """Return whether this node's copy is at *commit*, and nobody writes to it."""
        copy = self.copy_state(record)
        return copy is not None and (copy.commit, copy.live_epoch) == (commit, 0)

    def put_lock(self, record: VolumeRecord, epoch: int) -> Put:
        """Return the write of the volume's lock, on this node's lease."""
        lock = Lock(self.node_id, epoch)
        return put_lock(record.id, lock, lease=self.membership.lease)

    def name_of(self, node_id: str) -> str:
        """Return a node's name for people."""
        return self.nodes.name_of(node_id)

    def silent(self, node_id: str) -> PeerSilentError:
        """Return the error of a node that has not taken up what was wished of it."""
        name = self.name_of(node_id)
        return PeerSilentError(
            f"node '{name}' has not taken up what is wished of it",
            hint="retry; if its Remora is of an earlier version, update it, or do it "
            "there",
        )

    def warn_of_quality(
        self, record: VolumeRecord, head: Head, lineage: Lineage
    ) -> None:
        """Write a log line if containers begin with files of several moments."""
        made = lineage.epochs.get(head.committed.epoch)
        if self.is_shared(record) or made is None or made.owner == self.node_id:
            return  # its files are no copies: they were written here
        if head.quality in ("fuzzy", ""):
            log.warning(
                "the volume begins with a commit that is %s: its files may be of "
                "different moments",
                head.quality or "of unknown quality",
                extra=fields(volume=record.name, commit=str(head.committed)),
            )

    def note(self, event: str, record: VolumeRecord, epoch: int, **more: Fact) -> None:
        """Record an event, and log it: `tests/lab/history.py` reads the lines."""
        self.events.add(record, event, epoch=epoch, **more)
        alone = self.membership.alone
        log.info(
            event,
            extra=fields(
                event=event,
                volume=record.name,
                id=record.id,
                epoch=epoch,
                node=self.node_id,
                boot_id=self.boot_id,
                at_s=clock.boottime_s(),
                lease_deadline_s=None if alone else self.membership.deadline_s(),
                **more,
            ),
        )
