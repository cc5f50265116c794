"""What replication consists of on a node of a cluster, built from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from backends.rsync.backend import RsyncBackend
from backends.system.clock import Deadline
from plugin.cluster.failsafe import Holds
from plugin.cluster.keeper import Keeper
from plugin.cluster.ownership import Ownership
from plugin.cluster.rules import Choice
from plugin.cluster.state import Commit
from plugin.model import VolumeRecord
from plugin.peers.channel import Peers
from plugin.peers.server import Handler
from plugin.peers.sharing import SharedSsh
from plugin.replication.copies import Copies
from plugin.replication.departing import Departing
from plugin.replication.placement import Placement
from plugin.replication.pulling import Handing, Pulling
from plugin.replication.receiving import Receiving
from plugin.replication.sending import Sending
from plugin.replication.syncing import Syncing
from plugin.replication.transfer import Transfer


class ReplicationNode:
    """See `cluster.acquisition.Replication` for what it is to ownership."""

    def __init__(  # noqa: PLR0913 - the composition root names each of them
        self,
        ownership: Ownership,
        backend: RsyncBackend,
        ssh: SharedSsh,
        peers: Peers,
        *,
        holds: Holds,
        find: Callable[[str], VolumeRecord | None],
        records: Callable[[], Sequence[VolumeRecord]],
        keeper: Keeper,
        replace_after_s: float | None,
    ) -> None:
        """Build the parts, and let *ownership* know of them."""
        ownership.replication = self
        self._holds = holds
        self._records = records
        self._copies = Copies(backend, ownership.replicas)
        transfer = Transfer(peers, ssh)
        self.receiving = Receiving(
            ownership.heads,
            self._copies,
            node_id=ownership.node_id,
            find=find,
            by_id=self._by_id,
            stop_writers=keeper.stop_writers,
        )
        self._pulling = Pulling(ownership, self._copies, self.receiving, peers)
        self._handing = Handing(ownership, self._copies, transfer, find=find)
        self._syncing = Syncing(
            ownership,
            self._copies,
            Sending(peers, transfer),
            held=keeper.held,
            records=records,
            placement=Placement(ownership, find=find, replace_after_s=replace_after_s),
        )
        self._departing = Departing(ownership, self._copies, self.receiving)

    def handlers(self) -> Mapping[str, Handler]:
        """Return what other nodes may ask."""
        return {
            "stand": self.receiving.stand,
            "commit": self.receiving.commit,
            "send": self._handing.send,
        }

    def recover(self) -> None:
        """Finish what a crash has left; before other nodes are answered."""
        self._copies.recover(list(self._records()))

    def start(self) -> None:
        """Begin to keep members in step."""
        self._syncing.start()

    def stop(self) -> None:
        """End all of it; transfers under way end with the process."""
        self._syncing.stop()
        self._copies.close()

    def settle(self, record: VolumeRecord, commit: Commit) -> tuple[str, ...]:
        """Return the other members that have *commit*; see `Syncing.settle`."""
        return self._syncing.settle(record, commit)

    def ready(self, record: VolumeRecord, deadline: Deadline) -> None:
        """Return when this node's copy, if there is one, is exactly its commit."""
        home = self._copies.home(record)
        if home is None or self._copies.staging(record).marked() is None:
            return
        with self._copies.using(record, deadline):
            return

    def pull(
        self, record: VolumeRecord, epoch: int, choice: Choice, deadline: Deadline
    ) -> None:
        """Return when this node has the commit; see `Pulling.pull`."""
        self._pulling.pull(record, epoch, choice, deadline)

    def require_free(self, record: VolumeRecord) -> None:
        """Raise PeerRefusedError while an owner may rely on our word to wait."""
        self._holds.require_free(record.id)

    def depart(self, record: VolumeRecord, deadline: Deadline) -> None:
        """Let the copy of no member go; see `Departing.depart`."""
        self._departing.depart(record, deadline)

    def _by_id(self, volume_id: str) -> VolumeRecord | None:
        for record in self._records():
            if record.id == volume_id:
                return record
        return None
